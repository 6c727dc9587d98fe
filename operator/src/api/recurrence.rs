//! Times that come again: from each moment that a cron expression names, for a while.
use kube::KubeSchema;
use kube::core::Duration;
use serde::{Deserialize, Serialize};

use super::limits;

/// A time that comes again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Recurrence {
    /// When it begins, as in cron: minute, hour, day of the month, month and day of the week, such as `0 8 * * MON-FRI`.
    #[x_kube(validation = Rule::new(
        "self.matches('^[0-9A-Za-z*,/#-]+( [0-9A-Za-z*,/#-]+){4}$')"
    ).message("schedule must be the five fields of cron (minute, hour, day of the month, month, day of the week) with one space between them, such as '0 8 * * MON-FRI'"))]
    #[schemars(length(max = 128))]
    pub schedule: String,
    /// How long it lasts, such as `10h`; at most a week.
    #[schemars(transform = limits::lasting("duration", "1m", "168h", "10h"))]
    pub duration: Duration,
    /// The time zone of `schedule` by its IANA name, such as `Europe/Berlin`.
    #[serde(default = "utc")]
    #[x_kube(validation = Rule::new(
        "self.matches('^[A-Za-z][-+_A-Za-z0-9]*(/[-+_A-Za-z0-9]+)*$')"
    ).message("timeZone must be an IANA name, such as Europe/Berlin or UTC"))]
    #[schemars(length(max = 64))]
    pub time_zone: String,
}

fn utc() -> String {
    "UTC".to_owned()
}
