//! What holds at a time: which limits of replicas, and whether a window is open. Pure, with the clock given.
use cronexpr::Crontab;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use crate::api::autoscaling::AutoscalingSpec;
use crate::api::recurrence::Recurrence;
use crate::invalid::Invalid;

/// What the schedules of a service say at a time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hours {
    /// The place of the active schedule in the list, and when it ends.
    pub active: Option<(usize, Timestamp)>,
    /// When this may be otherwise.
    pub until: Option<Timestamp>,
}

/// One time of a recurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spell {
    /// Its first moment.
    pub begin: Timestamp,
    /// The first moment after it.
    pub end: Timestamp,
}

/// The limits that hold at a time. Without a time no schedule is active.
///
/// # Errors
/// A schedule that cannot be understood, or that never begins.
pub fn at(
    autoscaling: &AutoscalingSpec,
    now: Option<Timestamp>,
) -> Result<(AutoscalingSpec, Hours), Invalid> {
    let mut limits = autoscaling.clone();
    let mut hours = Hours::default();
    for (place, schedule) in autoscaling.schedules.iter().enumerate() {
        let field = || format!("spec.autoscaling.schedules[{place}]");
        let spell = spell(&schedule.time, now).map_err(|why| Invalid::Schedule(field(), why))?;
        let (Some(now), Some(spell)) = (now, spell) else {
            continue;
        };
        let until = spell.changes(now);
        hours.until = Some(hours.until.map_or(until, |earliest| earliest.min(until)));
        if spell.runs(now) && hours.active.is_none() {
            hours.active = Some((place, until));
            limits.min_replicas = schedule.min_replicas.unwrap_or(limits.min_replicas);
            limits.max_replicas = schedule.max_replicas.unwrap_or(limits.max_replicas);
        }
    }
    Ok((limits, hours))
}

/// The time that runs, or the next one. Nothing without a clock.
///
/// # Errors
/// The expression or the zone cannot be understood, or it never begins.
pub fn spell(recurrence: &Recurrence, now: Option<Timestamp>) -> Result<Option<Spell>, String> {
    let (cron, zone) = parse(recurrence)?;
    let length = SignedDuration::try_from(std::time::Duration::from(recurrence.duration));
    let length = length.unwrap_or(SignedDuration::MAX);
    // The first beginning whose end is still to come.
    let since = now
        .unwrap_or(ANY_DAY)
        .saturating_sub(length)
        .unwrap_or(Timestamp::MIN);
    let begin = next(&cron, &zone, since);
    let begin = begin.ok_or_else(|| {
        format!(
            "{:?} never begins, since no calendar or clock of {:?} shows that time; name one that comes",
            recurrence.schedule, recurrence.time_zone
        )
    })?;
    let end = begin.saturating_add(length).unwrap_or(Timestamp::MAX);
    Ok(now.map(|_| Spell { begin, end }))
}

/// 2026-01-01, from which it is seen whether a time ever begins where there is no clock.
const ANY_DAY: Timestamp = Timestamp::constant(1_767_225_600, 0);
/// In which every date has been, the 29th of February too. Zones change their clocks for ever, so this must end.
const HORIZON: SignedDuration = SignedDuration::from_hours(24 * 366 * 5);

/// The first time after `since`, if there is any. An hour that a day lacks has none, one that it has twice has two.
///
/// From one change of clocks to the next the zone is an offset, in which alone `cron` searches: given a zone that goes
/// back by half an hour, cronexpr 1.7 begins that hour again and again and never ends.
fn next(cron: &Crontab, zone: &TimeZone, since: Timestamp) -> Option<Timestamp> {
    let last = since.saturating_add(HORIZON).unwrap_or(Timestamp::MAX);
    let (mut since, mut offset) = (since, zone.to_offset(since));
    for change in zone.following(since) {
        let found = next_at(cron, offset, since)?;
        if found < change.timestamp() {
            return Some(found);
        }
        if change.timestamp() > last {
            return None;
        }
        let before = change.timestamp().saturating_sub(SignedDuration::from_nanos(1));
        (since, offset) = (before.unwrap_or(Timestamp::MIN), change.offset());
    }
    next_at(cron, offset, since)
}

/// The clock at the offset, read as if it were that of UTC. Nothing within four years, where cronexpr gives up.
fn next_at(cron: &Crontab, offset: Offset, since: Timestamp) -> Option<Timestamp> {
    let ahead = SignedDuration::from_secs(offset.seconds().into());
    let found = cron.find_next(since.saturating_add(ahead).unwrap_or(since));
    let found = found.ok()?.timestamp();
    Some(found.saturating_sub(ahead).unwrap_or(found))
}

fn parse(recurrence: &Recurrence) -> Result<(Crontab, TimeZone), String> {
    let Recurrence {
        schedule, time_zone, ..
    } = recurrence;
    let refused = |why: &str| {
        format!(
            "{schedule:?} in {time_zone:?} cannot be understood ({why}); write the five fields of cron and an IANA time zone, such as '0 8 * * MON-FRI' and Europe/Berlin"
        )
    };
    let zone = TimeZone::get(time_zone).map_err(|error| refused(&error.to_string()))?;
    let cron = cronexpr::parse_crontab(&format!("{schedule} UTC")).map_err(|error| {
        // The expression and a mark below it come first.
        let error = error.to_string();
        refused(error.rsplit_once("^ ").map_or(&*error, |(_, why)| why).trim())
    })?;
    Ok((cron, zone))
}

// === impl Spell ===

impl Spell {
    /// Whether it has begun; its end is still to come.
    #[must_use]
    pub fn runs(&self, now: Timestamp) -> bool {
        self.begin <= now
    }

    /// When this is otherwise.
    #[must_use]
    pub fn changes(&self, now: Timestamp) -> Timestamp {
        if self.runs(now) { self.end } else { self.begin }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn autoscaling(schedules: Value) -> AutoscalingSpec {
        serde_json::from_value(json!({ "minReplicas": 1, "maxReplicas": 4, "schedules": schedules })).unwrap()
    }

    fn at_time(autoscaling: &AutoscalingSpec, now: &str) -> (i32, i32, Option<usize>, String) {
        let (limits, hours) = at(autoscaling, Some(now.parse().unwrap())).unwrap();
        let until = hours.until.map(|until| until.to_string()).unwrap_or_default();
        let place = hours.active.map(|(place, _)| place);
        (limits.min_replicas, limits.max_replicas, place, until)
    }

    #[test]
    fn a_schedule_holds_from_its_beginning_for_its_duration_in_its_zone() {
        let office = autoscaling(json!([
            { "schedule": "0 8 * * MON-FRI", "duration": "10h", "timeZone": "Europe/Berlin", "minReplicas": 3, "maxReplicas": 8 },
        ]));
        for (now, wanted) in [
            // A Wednesday in winter, one hour ahead of UTC.
            ("2026-11-25T06:59:59Z", (1, 4, None, "2026-11-25T07:00:00Z")),
            ("2026-11-25T07:00:00Z", (3, 8, Some(0), "2026-11-25T17:00:00Z")),
            ("2026-11-25T16:59:59.9Z", (3, 8, Some(0), "2026-11-25T17:00:00Z")),
            ("2026-11-25T17:00:00Z", (1, 4, None, "2026-11-26T07:00:00Z")),
            // A Friday evening; and in summer, two hours ahead.
            ("2026-11-27T18:00:00Z", (1, 4, None, "2026-11-30T07:00:00Z")),
            ("2026-07-01T06:00:00Z", (3, 8, Some(0), "2026-07-01T16:00:00Z")),
        ] {
            let (min, max, place, until) = wanted;
            assert_eq!(
                at_time(&office, now),
                (min, max, place, until.to_owned()),
                "{now}"
            );
        }
    }

    #[test]
    fn an_hour_that_a_day_lacks_is_skipped_and_one_that_it_has_twice_begins_twice() {
        let next_in = |zone: &str, schedule: &str, now: &str| {
            let night = autoscaling(json!([
                { "schedule": schedule, "duration": "10m", "timeZone": zone, "minReplicas": 3 },
            ]));
            at_time(&night, now).3
        };
        let next = |schedule: &str, now: &str| next_in("Europe/Berlin", schedule, now);
        // Clocks go from 2:00 to 3:00, which is 1:00 in UTC.
        assert_eq!(next("30 2 * * *", "2026-03-28T12:00:00Z"), "2026-03-30T00:30:00Z");
        // And from 3:00 back to 2:00.
        assert_eq!(next("30 2 * * *", "2026-10-24T12:00:00Z"), "2026-10-25T00:30:00Z");
        assert_eq!(next("30 2 * * *", "2026-10-25T01:00:00Z"), "2026-10-25T01:30:00Z");
        assert_eq!(next("0 8 * * *", "2026-10-24T12:00:00Z"), "2026-10-25T07:00:00Z");
        // From 2:00 back to 1:30, which is 15:00 in UTC.
        let island = |schedule: &str, now: &str| next_in("Australia/Lord_Howe", schedule, now);
        assert_eq!(
            island("0 2 * * *", "2026-04-04T13:30:00Z"),
            "2026-04-04T15:30:00Z"
        );
        assert_eq!(
            island("45 1 * * *", "2026-04-04T14:00:00Z"),
            "2026-04-04T14:45:00Z"
        );
        assert_eq!(
            island("45 1 * * *", "2026-04-04T15:00:00Z"),
            "2026-04-04T15:15:00Z"
        );
    }

    #[test]
    fn the_first_active_schedule_counts_and_the_next_change_of_any_is_told() {
        let two = autoscaling(json!([
            { "schedule": "0 12 * * *", "duration": "1h", "minReplicas": 4 },
            { "schedule": "0 8 * * *", "duration": "10h", "maxReplicas": 2 },
        ]));
        let end = |text: &str| text.to_owned();
        assert_eq!(
            at_time(&two, "2026-11-25T09:00:00Z"),
            (1, 2, Some(1), end("2026-11-25T12:00:00Z"))
        );
        assert_eq!(
            at_time(&two, "2026-11-25T12:30:00Z"),
            (4, 4, Some(0), end("2026-11-25T13:00:00Z"))
        );
        assert_eq!(
            at_time(&two, "2026-11-25T19:00:00Z"),
            (1, 4, None, end("2026-11-26T08:00:00Z"))
        );
    }

    #[test]
    fn without_a_clock_no_schedule_is_active() {
        let always = autoscaling(json!([{ "schedule": "* * * * *", "duration": "1h", "minReplicas": 3 }]));
        let (limits, hours) = at(&always, None).unwrap();
        assert_eq!((limits.min_replicas, hours), (1, Hours::default()));
    }

    #[test]
    fn what_no_clock_ever_shows_is_told() {
        let now = Some("2026-11-25T12:00:00Z".parse().unwrap());
        for (schedule, zone, words) in [
            (
                "61 * * * *",
                "UTC",
                "spec.autoscaling.schedules[0]: \"61 * * * *\" in \"UTC\" cannot be understood (",
            ),
            (
                "0 8 * * *",
                "Europe/Atlantis",
                "in \"Europe/Atlantis\" cannot be understood (",
            ),
            ("0 8 30 2 *", "UTC", "\"0 8 30 2 *\" never begins"),
            // Only within the hour that this Sunday lacks.
            ("30 2 * 3 SUN#2", "America/New_York", "never begins"),
            ("30 2 * 3 SUNL", "Europe/Berlin", "never begins"),
        ] {
            let broken = autoscaling(
                json!([{ "schedule": schedule, "timeZone": zone, "duration": "1h", "minReplicas": 2 }]),
            );
            // By `render` too, which has no clock.
            for now in [now, None] {
                let error = at(&broken, now).unwrap_err().to_string();
                assert!(error.contains(words) && !error.contains('\n'), "{error}");
            }
        }
    }

    proptest! {
        /// Over two years, with every change of clocks of zones that change them at other times, or by half an hour.
        #[test]
        fn a_time_lasts_its_duration_and_what_is_told_of_its_end_is_so(
            second in 1_700_000_000..1_763_000_000_i64,
            schedule in prop::sample::select(&["30 2 * * *", "0 0 * * SUN", "15 1,3 * * *", "*/20 2 * * *", "0 23 1 * *"][..]),
            minutes in prop::sample::select(&[1_i64, 20, 60, 150, 1500][..]),
            zone in prop::sample::select(&["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"][..]),
        ) {
            let recurrence: Recurrence = serde_json::from_value(
                json!({ "schedule": schedule, "duration": format!("{minutes}m"), "timeZone": zone }),
            ).unwrap();
            let now = Timestamp::from_second(second).unwrap();
            let at = |time: Timestamp| spell(&recurrence, Some(time)).unwrap().unwrap();
            let found = at(now);
            prop_assert!(now < found.end);
            prop_assert_eq!(found.end.duration_since(found.begin), SignedDuration::from_mins(minutes));
            // Until it is otherwise, every look finds the same one.
            let changes = found.changes(now);
            prop_assert_eq!(at(changes - SignedDuration::from_nanos(1)), found);
            if found.runs(now) {
                prop_assert!(at(changes).begin > found.begin);
            } else {
                prop_assert!(at(changes) == found && found.runs(changes));
            }
        }
    }
}
