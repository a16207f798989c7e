output "endpoint_name" {
  description = "Name of the endpoint. Reading it waits until the endpoint is in service."
  value       = one(aws_sagemaker_endpoint.this[*].name)
}

output "endpoint_arn" {
  description = "ARN of the endpoint."
  value       = one(aws_sagemaker_endpoint.this[*].arn)
}

output "model_prefix_uri" {
  description = "Where archives go, as `s3://BUCKET/PREFIX/`."
  value       = local.model_prefix_uri
}

output "bucket" {
  description = "Name of the bucket that holds the archives."
  value       = var.create ? local.bucket : null
}

output "model_prefix" {
  description = "Prefix of the archives in the bucket."
  value       = var.model_prefix
}

output "role_arn" {
  description = "ARN of the execution role."
  value       = var.create ? local.role_arn : null
}

output "invoke_policy_json" {
  description = "IAM policy that allows calling every model on the endpoint."
  value       = one(data.aws_iam_policy_document.invoke[*].json)
}

output "region" {
  description = "Region of the endpoint."
  value       = local.region
}
