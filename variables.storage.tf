# Archives

variable "bucket" {
  description = <<-EOT
    The bucket that holds the archives.

    - `create`, `name`: with `create = false`, `name` is a bucket that exists, and nothing about it is changed. A new bucket's name is NAME-ACCOUNT-REGION unless given.
    - `force_destroy`: whether `terraform destroy` may delete a bucket with archives in it.
    - `kms_key_arn`: the key of its encryption, also for an existing bucket, so that the role may use it. Null for AES256.
    - `former_kms_key_arns`: keys that archives in the bucket are still encrypted with. Name the old key here when `kms_key_arn` changes: what lies in the bucket stays as it was encrypted.
    - `versioning_enabled`, `noncurrent_version_expiration_days`: overwritten or deleted objects are kept for so many days; 0 for ever.
    - `abort_incomplete_upload_days`: after how many days the parts of unfinished uploads go; 0 for never.
    - `access_log`: a bucket for S3's access logs, and a prefix there.
    - `deny_overwrite`: a bucket policy by which nobody, administrators included, can replace an archive: each write must carry `If-None-Match`, as `invoke upload` sends it.
    - `policy_json`: statements of your own for the bucket's policy.
    - `prefix_marker`: whether to put an empty object at the prefix, since SageMaker refuses a model whose prefix holds nothing. Null: yes in a new bucket, no in an existing one.
  EOT
  type = object({
    create                             = optional(bool, true)
    name                               = optional(string)
    force_destroy                      = optional(bool, false)
    kms_key_arn                        = optional(string)
    former_kms_key_arns                = optional(list(string), [])
    versioning_enabled                 = optional(bool, true)
    noncurrent_version_expiration_days = optional(number, 30)
    abort_incomplete_upload_days       = optional(number, 7)
    access_log = optional(object({
      bucket = string
      prefix = optional(string, "")
    }))
    deny_overwrite = optional(bool, false)
    policy_json    = optional(string)
    prefix_marker  = optional(bool)
  })
  default  = {}
  nullable = false

  validation {
    condition     = var.bucket.create || var.bucket.name != null
    error_message = "bucket.create is false, but there is no bucket.name. Name the bucket that exists."
  }

  validation {
    condition     = var.bucket.name == null || (can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.bucket.name)) && !can(regex("\\.\\.|^[0-9.]+$|^(xn--|sthree-|amzn-s3-demo-)|(-s3alias|--ol-s3|\\.mrap|--x-s3|--table-s3)$", var.bucket.name)))
    error_message = "bucket.name is \"${coalesce(var.bucket.name, "null")}\". A bucket's name has 3 to 63 lower-case letters, digits, hyphens and single dots, is no IP address, and neither begins nor ends as names that AWS keeps for itself; give it without s3://."
  }

  validation {
    condition     = !var.bucket.create || var.bucket.name != null || !can(regex("^(sthree-|amzn-s3-demo-)", lower(var.name)))
    error_message = "The bucket's name would begin as name does, \"${var.name}\", and AWS keeps such names of buckets for itself. Give another bucket.name."
  }

  validation {
    condition     = var.bucket.kms_key_arn == null || can(regex(local.patterns.kms_key, var.bucket.kms_key_arn))
    error_message = "bucket.kms_key_arn is \"${coalesce(var.bucket.kms_key_arn, "null")}\". Give the key's ARN, not its ID or alias: the policies name it."
  }

  validation {
    condition     = alltrue([for arn in var.bucket.former_kms_key_arns : can(regex(local.patterns.kms_key, arn))])
    error_message = "bucket.former_kms_key_arns has ${jsonencode(var.bucket.former_kms_key_arns)}. Give the keys' ARNs, not their IDs or aliases: the policies name them."
  }

  validation {
    condition     = alltrue([for days in [var.bucket.noncurrent_version_expiration_days, var.bucket.abort_incomplete_upload_days] : days >= 0 && floor(days) == days])
    error_message = "bucket.noncurrent_version_expiration_days and bucket.abort_incomplete_upload_days are whole numbers, 1 or more, or 0 for never."
  }

  validation {
    condition     = try(can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.bucket.access_log.bucket)) || var.bucket.access_log == null, true)
    error_message = "bucket.access_log.bucket is \"${try(coalesce(var.bucket.access_log.bucket), "null")}\". Give the name of a bucket, without s3://."
  }

  validation {
    condition     = var.bucket.policy_json == null || can(jsondecode(var.bucket.policy_json).Statement)
    error_message = "bucket.policy_json is not a policy. Give JSON with statements, such as jsonencode({ Version = \"2012-10-17\", Statement = [...] }) or the json of an aws_iam_policy_document."
  }

  validation {
    condition     = !anytrue([for statement in try(flatten([jsondecode(var.bucket.policy_json).Statement]), []) : contains(local.bucket_sids, try(statement.Sid, ""))])
    error_message = "bucket.policy_json has a statement with a Sid of the module's own (${join(", ", local.bucket_sids)}), one of which would replace the other. Choose another Sid."
  }

  validation {
    condition     = var.bucket.create || (!var.bucket.force_destroy && !var.bucket.deny_overwrite && var.bucket.policy_json == null && var.bucket.access_log == null)
    error_message = "bucket.create is false, so the module changes nothing about the bucket: force_destroy, deny_overwrite, policy_json and access_log are for a bucket that it creates. Leave them out."
  }
}

variable "model_prefix" {
  description = "Prefix of the archives in the bucket, ending in a slash. The endpoint serves every archive below it, and its role reads nothing else. Channels lie beside it, in `channels/`, and published capacity plans in `plans/`. Archives do not move with it: docs/module.md has the order of steps."
  type        = string
  default     = "models/"
  nullable    = false

  validation {
    condition     = can(regex("^([a-zA-Z0-9_-][a-zA-Z0-9._-]*/)+$", var.model_prefix)) && length(var.model_prefix) <= 512
    error_message = "model_prefix is \"${var.model_prefix}\". Give a path of letters, digits, dots, hyphens and underscores that does not begin with a slash and ends in one, such as \"models/\"."
  }

  validation {
    condition     = !can(regex("(^|/)(channels|data-capture|plans)/$", var.model_prefix))
    error_message = "model_prefix is \"${var.model_prefix}\", but channels, captured data and capacity plans are kept in folders of these names. Choose another last folder, such as \"models/\"."
  }
}
