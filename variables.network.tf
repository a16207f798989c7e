# Where it runs

variable "network_isolation" {
  description = "Whether the containers are cut off from the network. SageMaker itself fetches the archives, so models load all the same; a handler that calls other services, or installs packages when it starts, needs `false`."
  type        = bool
  default     = true
  nullable    = false
}

variable "vpc" {
  description = "Subnets and security groups for the instances, two subnets at least. Null for SageMaker's own network. The subnets need a way to S3, such as a gateway endpoint."
  type = object({
    subnet_ids         = list(string)
    security_group_ids = list(string)
  })
  default = null

  validation {
    condition     = try(length(distinct(var.vpc.subnet_ids)) >= 2 && length(var.vpc.subnet_ids) <= 16, var.vpc == null)
    error_message = "vpc.subnet_ids needs two subnets at least (16 at most), in different Availability Zones: with one, the endpoint goes down with its zone, and AWS may refuse more than one instance."
  }

  validation {
    condition     = try(length(var.vpc.security_group_ids) >= 1 && length(var.vpc.security_group_ids) <= 5, var.vpc == null)
    error_message = "vpc.security_group_ids needs 1 to 5 security groups."
  }

  validation {
    condition     = alltrue([for id in try(tolist(coalesce(var.vpc.subnet_ids, [])), []) : can(regex("^subnet-", id))]) && alltrue([for id in try(tolist(coalesce(var.vpc.security_group_ids, [])), []) : can(regex("^sg-", id))])
    error_message = "vpc has ${jsonencode(var.vpc)}. A subnet's ID begins with \"subnet-\", a security group's with \"sg-\"."
  }
}

variable "volume_kms_key_arn" {
  description = "ARN of the KMS key for the instances' storage volumes. Null for a key of AWS's. Instance types with a local disk encrypt it by themselves and take no key."
  type        = string
  default     = null

  validation {
    condition     = var.volume_kms_key_arn == null || can(regex(local.patterns.kms_key, var.volume_kms_key_arn))
    error_message = "volume_kms_key_arn is \"${coalesce(var.volume_kms_key_arn, "null")}\". Give the key's ARN, not its ID or alias: the execution role's policy names it."
  }

  validation {
    condition     = var.volume_kms_key_arn == null || !anytrue([for variant in values(var.variants) : can(regex(local.patterns.local_disk_type, variant.instance_type))])
    error_message = "volume_kms_key_arn is given, but a variant's instance type has a local disk, for which SageMaker refuses a key (the disk encrypts itself). Leave the key out or choose another type. Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.instance_type, null) })}."
  }
}

variable "data_capture" {
  description = <<-EOT
    Requests and answers to keep in S3; null for none. They hold whatever callers send: choose the bucket, key and retention for that.

    - `sampling_percentage`: 1 to 100.
    - `destination_uri`: s3://BUCKET/PREFIX, outside of the model prefix. Null for `data-capture/` beside the model prefix.
    - `kms_key_arn`: the key to encrypt them with. Null leaves it to the destination: the archives' bucket uses its own key, and for another bucket that encrypts with a key, name that key here.
    - `modes`: `Input`, `Output` or both.
    - `json_content_types`: content types kept as text instead of base64.
  EOT
  type = object({
    sampling_percentage = optional(number, 10)
    destination_uri     = optional(string)
    kms_key_arn         = optional(string)
    modes               = optional(set(string), ["Input", "Output"])
    json_content_types  = optional(set(string), ["application/json"])
  })
  default = null

  validation {
    condition     = try(var.data_capture.sampling_percentage >= 1 && var.data_capture.sampling_percentage <= 100 && floor(var.data_capture.sampling_percentage) == var.data_capture.sampling_percentage, var.data_capture == null)
    error_message = "data_capture.sampling_percentage is a whole number, 1 to 100. To capture nothing, leave data_capture out."
  }

  validation {
    condition     = try(var.data_capture.destination_uri == null ? true : can(regex(local.patterns.s3_uri, var.data_capture.destination_uri)), true)
    error_message = "data_capture.destination_uri is \"${try(coalesce(var.data_capture.destination_uri), "null")}\", which is not an address in S3. Give s3://BUCKET/PREFIX."
  }

  validation {
    condition     = try(var.data_capture.kms_key_arn == null ? true : can(regex(local.patterns.kms_key, var.data_capture.kms_key_arn)), true)
    error_message = "data_capture.kms_key_arn is \"${try(coalesce(var.data_capture.kms_key_arn), "null")}\". Give the key's ARN, not its ID or alias: the execution role's policy names it."
  }

  validation {
    condition     = try(length(var.data_capture.modes) > 0 && alltrue([for mode in var.data_capture.modes : contains(["Input", "Output"], mode)]), var.data_capture == null)
    error_message = "data_capture.modes is Input, Output or both."
  }

  validation {
    condition     = alltrue([for kind in try(var.data_capture.json_content_types, []) : can(regex("^[a-zA-Z0-9][a-zA-Z0-9.+-]*/[a-zA-Z0-9.+-]+$", kind))])
    error_message = "data_capture.json_content_types has ${jsonencode(try(var.data_capture.json_content_types, []))}. A content type is written such as application/json."
  }
}
