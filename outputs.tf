output "endpoint_name" {
  description = "Name of the endpoint. Whatever reads it waits until the endpoint is in service."
  value       = one(aws_sagemaker_endpoint.this[*].name)
}

output "endpoint_arn" {
  description = "ARN of the endpoint."
  value       = one(aws_sagemaker_endpoint.this[*].arn)
}

output "endpoint_configuration_name" {
  description = "Name of the endpoint configuration in use; it changes with every update."
  value       = one(aws_sagemaker_endpoint_configuration.this[*].name)
}

output "model_names" {
  description = "Name of the SageMaker model of each variant; it changes with whatever the model is made of."
  value       = { for key, model in aws_sagemaker_model.this : key => model.name }
}

output "image_uris" {
  description = "Container image of each variant."
  value       = local.image_uris
}

output "bucket" {
  description = "Name of the bucket that holds the archives."
  value       = var.create ? local.bucket : null
}

output "bucket_arn" {
  description = "ARN of the bucket that holds the archives."
  value       = var.create ? local.bucket_arn : null
}

output "model_prefix" {
  description = "Prefix of the archives in the bucket, ending in a slash."
  value       = var.create ? local.model_prefix : null
}

output "model_prefix_uri" {
  description = "Where archives go: `s3://BUCKET/PREFIX/`."
  value       = var.create ? local.model_prefix_uri : null
}

output "role_arn" {
  description = "ARN of the execution role."
  value       = var.create ? local.role_arn : null
}

output "role_name" {
  description = "Name of the execution role, if the module created it."
  value       = one(aws_iam_role.this[*].name)
}

output "role_id" {
  description = "Unique ID of the execution role, if the module created it, as the condition key `aws:userid` has it."
  value       = one(aws_iam_role.this[*].unique_id)
}

output "invoke_policy_json" {
  description = "IAM policy that allows calling every model on the endpoint."
  value       = one(data.aws_iam_policy_document.invoke[*].json)
}

output "invoke_policies" {
  description = "ARN and JSON of each policy in `invoke_policies`, by name."
  value = {
    for key, policy in aws_iam_policy.invoke : key => {
      arn  = policy.arn
      json = data.aws_iam_policy_document.invoke_targets[key].json
    }
  }
}

output "client_policy_json" {
  description = "IAM policy for clients that call models by name with `mme.client` or `invoke predict`: it allows calling every model on the endpoint, and what `lookup_policy_json` allows."
  value       = one(data.aws_iam_policy_document.client[*].json)
}

output "lookup_policy_json" {
  description = "IAM policy that allows looking up which target a name means, and no calls. A tenant that calls models by name needs it together with one of `invoke_policies`."
  value       = one(data.aws_iam_policy_document.lookup[*].json)
}

output "operator_policy_json" {
  description = "IAM policy for operators of the endpoint: what `status`, `doctor`, `logs`, `warm`, `dashboard`, the channels' tasks, `delete`, `prune` and `capacity` need. It allows neither publishing archives nor changing the endpoint."
  value       = one(data.aws_iam_policy_document.operator[*].json)
}

output "publisher_policy_json" {
  description = "IAM policy that allows publishing archives and capacity plans and moving channels, and never replacing or deleting an archive."
  value       = one(data.aws_iam_policy_document.publisher[*].json)
}

output "publisher_policy_arn" {
  description = "ARN of the publisher policy, with `create_publisher_policy`."
  value       = one(aws_iam_policy.publisher[*].arn)
}

output "alarm_names" {
  description = "Names of the CloudWatch alarms, by variant and kind, `\"primary/errors_5xx\"`, and by `\"target/NAME\"` for those of `alarms.targets`."
  value = merge(
    { for key, alarm in aws_cloudwatch_metric_alarm.this : key => alarm.alarm_name },
    { for key, alarm in aws_cloudwatch_metric_alarm.target : "target/${key}" => alarm.alarm_name },
  )
}

output "alarm_arns" {
  description = "ARNs of the CloudWatch alarms, by the keys of `alarm_names`."
  value = merge(
    { for key, alarm in aws_cloudwatch_metric_alarm.this : key => alarm.arn },
    { for key, alarm in aws_cloudwatch_metric_alarm.target : "target/${key}" => alarm.arn },
  )
}

output "topic_arn" {
  description = "ARN of the SNS topic, with `notifications.create_topic`."
  value       = one(aws_sns_topic.this[*].arn)
}

output "log_group_name" {
  description = "Log group of the containers."
  value       = var.create ? local.log_group_name : null
}

output "log_group_arn" {
  description = "ARN of the containers' log group, if the module created it."
  value       = one(aws_cloudwatch_log_group.this[*].arn)
}

output "contributor_insights_rule_names" {
  description = "Names of the Contributor Insights rules, `calls-by-target` and `loads-by-target`, with `contributor_insights`."
  value       = { for key, rule in aws_cloudwatch_contributor_insight_rule.this : key => rule.rule_name }
}

output "dashboard_name" {
  description = "Name of the CloudWatch dashboard, with `dashboard`."
  value       = one(aws_cloudwatch_dashboard.this[*].dashboard_name)
}

output "region" {
  description = "Region of the endpoint."
  value       = var.create ? local.region : null
}

output "toolchain" {
  description = "What the toolchain needs to know, in one object. A root that has it in any output can be named with `--terraform DIR`, or `--terraform DIR#OUTPUT` where it has several."
  value = var.create ? {
    endpoint_name = one(aws_sagemaker_endpoint.this[*].name)
    bucket        = local.bucket
    model_prefix  = local.model_prefix
    region        = local.region
  } : null
}
