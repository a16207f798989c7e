output "endpoint_name" {
  description = "Name of the endpoint."
  value       = module.endpoint.endpoint_name
}

output "endpoint_arn" {
  description = "ARN of the endpoint."
  value       = module.endpoint.endpoint_arn
}

output "model_prefix_uri" {
  description = "Where archives go, as `s3://BUCKET/PREFIX/`."
  value       = module.endpoint.model_prefix_uri
}

output "bucket" {
  description = "Name of the bucket that holds the archives."
  value       = module.endpoint.bucket
}

output "model_prefix" {
  description = "Prefix of the archives in the bucket."
  value       = module.endpoint.model_prefix
}

output "role_arn" {
  description = "ARN of the execution role."
  value       = module.endpoint.role_arn
}

output "invoke_policy_json" {
  description = "IAM policy that allows calling every model on the endpoint."
  value       = module.endpoint.invoke_policy_json
}

output "region" {
  description = "Region of the endpoint."
  value       = module.endpoint.region
}
