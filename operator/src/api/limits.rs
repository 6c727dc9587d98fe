//! Limits of Kubernetes' own types that the API server would check only when a child is applied: with them
//! in our schema, `kubectl apply` of the QwenService already refuses the value.
use kube::core::Rule;
use schemars::Schema;
use serde_json::{Value, json};

/// Values of labels; their keys are left to the child, since CEL cannot bound the length of a key.
pub fn labels(schema: &mut Schema) {
    schema.insert("maxProperties".to_owned(), json!(64));
    schema.insert(
        "additionalProperties".to_owned(),
        json!({
            "type": "string",
            "maxLength": 63,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$')",
                "message": "a label's value is at most 63 letters, digits, '-', '_' and '.', and begins and ends with a letter or digit",
            }],
        }),
    );
}

/// The name of another object, such as a ServiceAccount.
pub fn object_name(schema: &mut Schema) {
    schema.insert("maxLength".to_owned(), json!(253));
    rule(
        schema,
        "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
        "write the name of an object of the cluster: lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit",
    );
}

/// A time of whole seconds, minutes or hours.
pub fn pause(schema: &mut Schema) {
    // More digits are more than Go's durations hold.
    schema.insert("maxLength".to_owned(), json!(7));
    rule(
        schema,
        "self.matches('^[1-9][0-9]*(s|m|h)$')",
        "write whole seconds, minutes or hours, such as 30s, 5m or 4h",
    );
}

/// A time between two limits, written as Go does.
pub fn lasting(
    field: &'static str,
    least: &'static str,
    most: &'static str,
    example: &'static str,
) -> impl Fn(&mut Schema) {
    move |schema| {
        schema.insert("maxLength".to_owned(), json!(16));
        rule(
            schema,
            &format!(
                "self.matches('^([0-9]{{1,6}}(h|m|s))+$') && duration(self) >= duration('{least}') && duration(self) <= duration('{most}')"
            ),
            &format!(
                "{field} must be whole seconds, minutes or hours from {least} to {most}, such as {example}"
            ),
        );
    }
}

/// The rule of a field with an address.
pub fn http_address(field: &str) -> Rule {
    let message = format!("{field} must begin with http:// or https:// and a host, and have no spaces");
    Rule::new("self.matches('^https?://[^ /?#]+[^ ]*$')").message(message.as_str())
}

/// A number of replicas or a share of them; Kubernetes refuses more than all of them for `maxUnavailable`.
pub fn count_or_percentage(schema: &mut Schema) {
    rule(
        schema,
        "string(self).matches('^([0-9]+|(100|[1-9]?[0-9])%)$')",
        "write a number of replicas, such as 1, or a percentage up to 100%, such as \"25%\"",
    );
}

/// Like `count_or_percentage`, and more than none.
pub fn some_replicas(schema: &mut Schema) {
    rule(
        schema,
        "string(self).matches('^([1-9][0-9]*|(100|[1-9][0-9]?)%)$')",
        "maxUnavailable must allow at least one replica, or no node with a replica could ever be drained: write a number from 1, or a percentage from \"1%\" to \"100%\"",
    );
}

/// A number of replicas or a share of them that leaves some over.
pub fn count_or_share(schema: &mut Schema) {
    rule(
        schema,
        "string(self).matches('^([0-9]+|[1-9]?[0-9]%)$')",
        "minAvailable must let at least one replica go, or no node with a replica could ever be drained: write a number of replicas, such as 1, or a percentage up to \"99%\"",
    );
}

/// Like `some_replicas`, of nodes.
pub fn some_nodes(schema: &mut Schema) {
    rule(
        schema,
        "string(self).matches('^([1-9][0-9]*|(100|[1-9][0-9]?)%)$')",
        "maxUnavailable must allow at least one node, or a changed image would be fetched nowhere: write a number from 1, or a percentage from \"1%\" to \"100%\"",
    );
}

/// A key in the data of a Secret.
pub fn data_key(schema: &mut Schema) {
    schema.insert("maxLength".to_owned(), json!(253));
    rule(
        schema,
        "self.matches('^[-._a-zA-Z0-9]+$')",
        "write a key in the Secret's data: letters, digits, '-', '_' and '.'",
    );
}

/// Host names, the first label of which may be `*`.
pub fn hostnames(schema: &mut Schema) {
    schema.insert("maxItems".to_owned(), json!(16));
    if let Some(item) = at(schema, &["items"]) {
        item["maxLength"] = json!(253);
        item["x-kubernetes-validations"] = json!([{
            "rule": "self.matches('^([*][.])?[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",
            "message": "write a host name such as chat.example.com or *.example.com, without scheme and port",
        }]);
    }
}

/// Ranges of addresses.
pub fn cidrs(schema: &mut Schema) {
    schema.insert("maxItems".to_owned(), json!(64));
    if let Some(item) = at(schema, &["items"]) {
        item["pattern"] = json!(CIDR);
    }
}

/// How ranges of addresses are written.
const CIDR: &str = "^[0-9a-fA-F:.]+/[0-9]{1,3}$";

/// The class of a load balancer, which has the form of a label's key.
pub fn class_name(schema: &mut Schema) {
    schema.insert("maxLength".to_owned(), json!(317));
    rule(
        schema,
        "self.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$')",
        "write the name of a class such as internal or example.com/internal",
    );
}

/// The path of an Ingress.
pub fn url_path(schema: &mut Schema) {
    schema.insert("maxLength".to_owned(), json!(256));
    rule(
        schema,
        "self.startsWith('/') && !self.matches('//|/[.]{1,2}(/|$)|%2[fF]| ')",
        "path begins with / and has neither //, /./, /../, %2f nor spaces: write /v1, or one such as /chat/v1 that your controller rewrites",
    );
}

/// Peers of a NetworkPolicy.
pub fn peers(schema: &mut Schema) {
    schema.insert("maxItems".to_owned(), json!(32));
    if let Some(item) = at(schema, &["items"]) {
        item["x-kubernetes-validations"] = json!([{
            "rule": "has(self.ipBlock) != (has(self.podSelector) || has(self.namespaceSelector))",
            "message": "a peer is either an ipBlock, or a podSelector, a namespaceSelector or both of these: write one of them, {} selects all",
        }]);
    }
    if let Some(cidr) = at(schema, &["items", "properties", "ipBlock", "properties", "cidr"]) {
        cidr["pattern"] = json!(CIDR);
    }
}

/// The name of a StorageClass, which a claim keeps; `""` is none, as in Kubernetes' own claims.
pub fn fixed_name(schema: &mut Schema) {
    schema.insert("maxLength".to_owned(), json!(253));
    schema.insert(
        "x-kubernetes-validations".to_owned(),
        json!([{
            "rule": "self.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$')",
            "message": "write the name of a StorageClass, or \"\" for a volume that is there already",
        }, {
            "rule": "self == oldSelf",
            "message": "the storage class of a claim cannot be changed: remove the claim first, or name another one in claimName",
        }]),
    );
}

/// An amount of storage.
pub fn quantity(schema: &mut Schema) {
    schema.insert("pattern".to_owned(), json!(AMOUNT));
    schema.insert("maxLength".to_owned(), json!(32));
}

/// How Kubernetes writes amounts.
const AMOUNT: &str = r"^\+?([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)(([KMGTPE]i)|[numkMGTPE]|([eE][-+]?[0-9]+))?$";

/// Amounts of compute resources.
pub fn resources(schema: &mut Schema) {
    for part in ["limits", "requests"] {
        if let Some(amount) = at(schema, &["properties", part, "additionalProperties"]) {
            amount["pattern"] = json!(AMOUNT);
            amount["description"] = json!("A quantity such as 500m, 2, 512Mi or 8Gi.");
        }
    }
    // CEL compares these names with those of the pod's claims, which it does only for short lists.
    if let Some(claims) = at(schema, &["properties", "claims"]) {
        claims["maxItems"] = json!(16);
        claims["items"]["properties"]["name"]["maxLength"] = json!(63);
    }
}

/// Claims of a pod on devices.
pub fn resource_claims(schema: &mut Schema) {
    schema.insert("maxItems".to_owned(), json!(16));
    if let Some(item) = at(schema, &["items"]) {
        item["properties"]["name"]["maxLength"] = json!(63);
        item["x-kubernetes-validations"] = json!([{
            "rule": "has(self.resourceClaimName) != has(self.resourceClaimTemplateName)",
            "message": "write either resourceClaimName, which all replicas share, or resourceClaimTemplateName, which makes a claim for each",
        }]);
    }
}

/// A part of a pod's spec, which the API server checks when the Deployment is applied.
pub fn pod_spec(schema: &mut Schema) {
    *schema = schemars::json_schema!({
        "type": "object",
        "maxProperties": 64,
        "x-kubernetes-preserve-unknown-fields": true,
        "description": schema.get("description"),
    });
}

/// The pace of an autoscaler.
pub fn behavior(schema: &mut Schema) {
    let limits: [(&[&str], Value); 7] = [
        (
            &["stabilizationWindowSeconds"],
            json!({ "minimum": 0, "maximum": 3600 }),
        ),
        (&["policies"], json!({ "minItems": 1, "maxItems": 16 })),
        (
            &["tolerance"],
            json!({ "pattern": r"^\+?([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)m?$" }),
        ),
        (&["selectPolicy"], json!({ "enum": ["Max", "Min", "Disabled"] })),
        (
            &["policies", "items", "properties", "type"],
            json!({ "enum": ["Pods", "Percent"] }),
        ),
        (
            &["policies", "items", "properties", "value"],
            json!({ "minimum": 1 }),
        ),
        (
            &["policies", "items", "properties", "periodSeconds"],
            json!({ "minimum": 1, "maximum": 1800 }),
        ),
    ];
    for direction in ["scaleUp", "scaleDown"] {
        for (path, limit) in &limits {
            let path: Vec<&str> = ["properties", direction, "properties"]
                .iter()
                .chain(*path)
                .copied()
                .collect();
            if let (Some(Value::Object(found)), Value::Object(limit)) = (at(schema, &path), limit) {
                found.extend(limit.clone());
            }
        }
    }
}

/// Metrics of an autoscaler.
pub fn metrics(schema: &mut Schema) {
    const PARTS: [&str; 5] = ["resource", "containerResource", "pods", "object", "external"];
    schema.insert("maxItems".to_owned(), json!(16));
    for part in PARTS {
        let target = ["items", "properties", part, "properties", "target", "properties"];
        for (field, limit) in [
            (
                "type",
                json!({ "enum": ["Utilization", "Value", "AverageValue"] }),
            ),
            ("averageUtilization", json!({ "minimum": 1 })),
            ("averageValue", json!({ "pattern": AMOUNT })),
            ("value", json!({ "pattern": AMOUNT })),
        ] {
            let path: Vec<&str> = target.iter().copied().chain([field]).collect();
            if let (Some(Value::Object(found)), Value::Object(limit)) = (at(schema, &path), limit) {
                found.extend(limit);
            }
        }
    }
    if let Some(item) = at(schema, &["items"]) {
        item["properties"]["type"]["enum"] =
            json!(["Resource", "ContainerResource", "Pods", "Object", "External"]);
        item["x-kubernetes-validations"] = json!([{
            "rule": "has(self.resource) == (self.type == 'Resource') && has(self.containerResource) == (self.type == 'ContainerResource') && has(self.pods) == (self.type == 'Pods') && has(self.object) == (self.type == 'Object') && has(self.external) == (self.type == 'External')",
            "message": "a metric has beside its type the one field of that name and no other, such as type: External with external",
        }]);
    }
}

/// Settings of a trigger.
pub fn trigger_metadata(schema: &mut Schema) {
    schema.insert("maxProperties".to_owned(), json!(64));
    schema.insert(
        "additionalProperties".to_owned(),
        json!({ "type": "string", "maxLength": 4096 }),
    );
}

fn at<'a>(schema: &'a mut Schema, path: &[&str]) -> Option<&'a mut Value> {
    let (first, rest) = path.split_first()?;
    let start = schema.get_mut(*first)?;
    rest.iter().try_fold(start, |value, key| value.get_mut(*key))
}

fn rule(schema: &mut Schema, rule: &str, message: &str) {
    let rules = json!([{ "rule": rule, "message": message }]);
    schema.insert("x-kubernetes-validations".to_owned(), rules);
}
