# The variants

variable "variants" {
  description = <<-EOT
    Production variants by name. Several of them share the traffic by weight; all serve the same models, those under the one prefix.

    - `instance_type`, `instance_count`: any CPU type, or a type with an NVIDIA GPU. With `autoscaling`, the count is where each update starts again.
    - `weight`: its part of the traffic is this over the sum of all. AWS keeps weights in single precision, so fractions are scaled to whole numbers: 0.9 and 0.1 become 9 and 1.
    - `image_uri`, `environment`: this variant's own image, and variables on top of the module's; a null value takes one of the module's away.
    - `volume_size_gb`: 1 to 512, for instance types without a local disk. It has to hold every archive that is loaded, extracted.
    - `download_timeout_seconds`, `startup_timeout_seconds`: 60 to 3600; how long a model's download and the container's start may take.
    - `routing_strategy`: `LEAST_OUTSTANDING_REQUESTS` or `RANDOM`; null for AWS's own choice.
    - `inference_ami_version`, `enable_ssm_access`: as in AWS's `ProductionVariant`.
    - `core_dump`: where a container that crashes leaves its memory, s3://BUCKET/PREFIX, and the key to encrypt it with. It holds what callers sent.
    - `autoscaling`: null, or the range, one or more targets to track, and schedules. `invocations_per_instance` is per minute; `cpu_utilization` counts 100 for each core; `memory_utilization` is percent, for models that crowd each other out. `schedules` are one-off `at(…)`, `rate(…)` or `cron(…)` changes of the range; `start_time` and `end_time` are in UTC and end in Z.
  EOT
  type = map(object({
    instance_type            = optional(string, "ml.m5.xlarge")
    instance_count           = optional(number, 1)
    weight                   = optional(number, 1)
    image_uri                = optional(string)
    environment              = optional(map(string), {})
    volume_size_gb           = optional(number)
    download_timeout_seconds = optional(number)
    startup_timeout_seconds  = optional(number)
    routing_strategy         = optional(string)
    inference_ami_version    = optional(string)
    enable_ssm_access        = optional(bool, false)
    core_dump = optional(object({
      destination_uri = string
      kms_key_arn     = optional(string)
    }))
    autoscaling = optional(object({
      min_capacity               = number
      max_capacity               = number
      invocations_per_instance   = optional(number)
      cpu_utilization            = optional(number)
      memory_utilization         = optional(number)
      scale_in_cooldown_seconds  = optional(number, 600)
      scale_out_cooldown_seconds = optional(number, 300)
      scale_in_enabled           = optional(bool, true)
      schedules = optional(map(object({
        schedule     = string
        timezone     = optional(string, "UTC")
        min_capacity = number
        max_capacity = number
        start_time   = optional(string)
        end_time     = optional(string)
      })), {})
    }))
  }))
  default  = { primary = {} }
  nullable = false

  validation {
    condition     = length(var.variants) >= 1 && length(var.variants) <= 10
    error_message = "variants has ${length(var.variants)} entries; an endpoint has 1 to 10."
  }

  validation {
    condition     = length([for key, variant in var.variants : key if variant == null]) == 0
    error_message = "variants: null says nothing about ${join(", ", [for key, variant in var.variants : key if variant == null])}. Leave the key out for no such variant, or write {} for one with every default."
  }

  validation {
    condition     = length([for key in keys(var.variants) : key if length(key) > 63 || !can(regex("^[a-zA-Z0-9](-*[a-zA-Z0-9])*$", key))]) == 0
    error_message = "variants: a name has at most 63 letters, digits and hyphens, beginning and ending with a letter or a digit. Rename ${join(", ", [for key in keys(var.variants) : "\"${key}\"" if length(key) > 63 || !can(regex("^[a-zA-Z0-9](-*[a-zA-Z0-9])*$", key))])}."
  }

  validation {
    condition     = !anytrue([for variant in values(var.variants) : try(variant.instance_type != null && !can(regex("^ml\\.[a-z0-9-]+\\.[a-z0-9]+$", variant.instance_type)), false)])
    error_message = "variants: an instance_type is not one of SageMaker's. They begin with \"ml.\", such as \"ml.m5.xlarge\". Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.instance_type, null) })}."
  }

  validation {
    condition     = !anytrue([for variant in values(var.variants) : try(can(regex("^ml\\.(inf|trn|dl|eia)[0-9]", variant.instance_type)), false)])
    error_message = "variants: Inferentia, Trainium and Gaudi instances (ml.inf*, ml.trn*, ml.dl*) cannot host a multi-model endpoint. Choose a CPU type or one with an NVIDIA GPU (ml.g4dn, ml.g5). Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.instance_type, null) })}."
  }

  validation {
    condition = !anytrue([
      for variant in values(var.variants) :
      try(variant.instance_count < 1 || floor(variant.instance_count) != variant.instance_count, false)
    ])
    error_message = "variants: instance_count is a whole number, 1 or more: a multi-model endpoint cannot scale to zero. Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.instance_count, null) })}."
  }

  validation {
    condition     = !anytrue([for variant in values(var.variants) : try(variant.weight < 0 || variant.weight > 100000000, false)])
    error_message = "variants: weight is 0 to 100000000. Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.weight, null) })}."
  }

  validation {
    condition     = try(sum(values(var.variants)[*].weight) > 0, true)
    error_message = "variants: every weight is 0, so nothing would get any traffic. Give one variant at least a weight of more than 0."
  }

  validation {
    condition = !anytrue([
      for variant in values(var.variants) :
      try(variant.image_uri != null && !can(regex(local.patterns.ecr_image, variant.image_uri)), false)
    ])
    error_message = "variants: an image_uri is not in ECR. SageMaker takes ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY:TAG, or @sha256:DIGEST in place of :TAG. Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.image_uri, null) })}."
  }

  validation {
    condition = !anytrue([
      for variant in values(var.variants) :
      try(can(regex(local.patterns.arm_type, variant.instance_type)) && variant.image_uri == null && var.image_uri == null, false)
    ])
    error_message = "variants: an instance type has an Arm processor (Graviton), and AWS's Hugging Face image is for x86 alone. Choose another type, or give an Arm image as image_uri. Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.instance_type, null) })}."
  }

  validation {
    condition = !anytrue([
      for variant in values(var.variants) :
      try(!can(regex(local.patterns.gpu_type, variant.instance_type)) && can(regex(local.patterns.gpu_image, coalesce(variant.image_uri, var.image_uri))), false)
    ])
    error_message = "variants: a GPU image on an instance type without a GPU. Choose a GPU type (ml.g4dn, ml.g5), or the image's CPU tag. Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.instance_type, null) })}."
  }

  validation {
    condition = !anytrue([
      for variant in values(var.variants) :
      try(anytrue([for name in keys(variant.environment) : !can(regex(local.patterns.variable, name))]), false)
    ])
    error_message = "variants: the name of an environment variable has letters, digits and underscores, does not begin with a digit, and is at most 1024 characters long. Given: ${jsonencode({ for key, variant in var.variants : key => try(keys(variant.environment), null) })}."
  }

  validation {
    condition     = !anytrue([for variant in values(var.variants) : try(length(merge(var.environment, variant.environment)) > 100, false)])
    error_message = "variants: SageMaker takes 100 environment variables, the module's and the variant's own together. Given: ${jsonencode({ for key, variant in var.variants : key => try(length(merge(var.environment, variant.environment)), null) })}."
  }

  validation {
    condition = !anytrue([
      for variant in values(var.variants) :
      try(anytrue([for value in values(variant.environment) : try(length(value) > 1024, false)]), false)
    ])
    error_message = "variants: SageMaker takes environment values of at most 1024 characters. Longer text belongs in the archive. Given: ${jsonencode({ for key, variant in var.variants : key => try([for name, value in variant.environment : name if try(length(value) > 1024, false)], null) })}."
  }

  validation {
    condition = !anytrue([
      for variant in values(var.variants) :
      try(variant.volume_size_gb < 1 || variant.volume_size_gb > 512 || floor(variant.volume_size_gb) != variant.volume_size_gb, false)
    ])
    error_message = "variants: volume_size_gb is a whole number, 1 to 512. Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.volume_size_gb, null) })}."
  }

  validation {
    condition = !anytrue([
      for variant in values(var.variants) :
      try(variant.volume_size_gb != null && can(regex(local.patterns.local_disk_type, variant.instance_type)), false)
    ])
    error_message = "variants: an instance type with a local disk, whose size is fixed, has a volume_size_gb. Leave it out there. Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.volume_size_gb, null) })}."
  }

  validation {
    condition = !anytrue([
      for variant in values(var.variants) :
      try(anytrue([for seconds in [variant.download_timeout_seconds, variant.startup_timeout_seconds] : try(seconds < 60 || seconds > 3600 || floor(seconds) != seconds, false)]), false)
    ])
    error_message = "variants: download_timeout_seconds and startup_timeout_seconds are whole numbers, 60 to 3600. Given: ${jsonencode({ for key, variant in var.variants : key => try([variant.download_timeout_seconds, variant.startup_timeout_seconds], null) })}."
  }

  validation {
    condition     = !anytrue([for variant in values(var.variants) : try(!contains(["LEAST_OUTSTANDING_REQUESTS", "RANDOM"], variant.routing_strategy), false)])
    error_message = "variants: routing_strategy is LEAST_OUTSTANDING_REQUESTS, RANDOM or null. Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.routing_strategy, null) })}."
  }

  validation {
    condition = !anytrue([
      for variant in values(var.variants) :
      try(variant.core_dump != null && !can([regex(local.patterns.s3_uri, variant.core_dump.destination_uri), regex(local.patterns.kms_key, coalesce(variant.core_dump.kms_key_arn, local.any_kms_key))]), false)
    ])
    error_message = "variants: core_dump.destination_uri is s3://BUCKET/PREFIX, and core_dump.kms_key_arn a key's ARN, not its ID or alias. Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.core_dump, null) })}."
  }

  validation {
    condition = !anytrue([
      for variant in values(var.variants) :
      try(variant.autoscaling != null && !try(variant.autoscaling.min_capacity >= 1 && variant.autoscaling.min_capacity <= variant.autoscaling.max_capacity && alltrue([for n in [variant.autoscaling.min_capacity, variant.autoscaling.max_capacity] : floor(n) == n]), false), false)
    ])
    error_message = "variants: autoscaling needs whole numbers 1 <= min_capacity <= max_capacity: a multi-model endpoint cannot scale to zero. Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.autoscaling, null) })}."
  }

  validation {
    condition = !anytrue([
      for variant in values(var.variants) :
      try(variant.instance_count < variant.autoscaling.min_capacity || variant.instance_count > variant.autoscaling.max_capacity, false)
    ])
    error_message = "variants: an instance_count lies outside its autoscaling range. Every update of the endpoint starts again from instance_count: choose one between min_capacity and max_capacity. Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.instance_count, null) })}."
  }

  validation {
    condition = !anytrue([
      for variant in values(var.variants) :
      try(length(compact([variant.autoscaling.invocations_per_instance, variant.autoscaling.cpu_utilization, variant.autoscaling.memory_utilization])) + length(variant.autoscaling.schedules) == 0, false)
    ])
    error_message = "variants: an autoscaling says nothing to act on. Give a target (invocations_per_instance; AWS's example for multi-model endpoints is 70), or schedules. Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.autoscaling, null) })}."
  }

  validation {
    condition = !anytrue([
      for variant in values(var.variants) :
      try(anytrue([for target in [variant.autoscaling.invocations_per_instance, variant.autoscaling.cpu_utilization, variant.autoscaling.memory_utilization] : try(target <= 0, false)]), false)
    ])
    error_message = "variants: an autoscaling target (invocations_per_instance, cpu_utilization, memory_utilization) is more than 0. Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.autoscaling, null) })}."
  }

  validation {
    condition     = !anytrue([for variant in values(var.variants) : try(variant.autoscaling.memory_utilization > 100, false)])
    error_message = "variants: autoscaling.memory_utilization is in percent, at most 100. Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.autoscaling.memory_utilization, null) })}."
  }

  validation {
    condition = !anytrue([
      for variant in values(var.variants) :
      try(anytrue([for seconds in [variant.autoscaling.scale_in_cooldown_seconds, variant.autoscaling.scale_out_cooldown_seconds] : seconds < 0 || floor(seconds) != seconds]), false)
    ])
    error_message = "variants: autoscaling.scale_in_cooldown_seconds and scale_out_cooldown_seconds are whole numbers, 0 or more. Given: ${jsonencode({ for key, variant in var.variants : key => try(variant.autoscaling, null) })}."
  }

  validation {
    condition = !anytrue(flatten([
      for variant in values(var.variants) : [
        for item in try(values(variant.autoscaling.schedules), []) :
        item == null || !anytrue([for kind in ["at", "rate", "cron"] : can(regex(local.patterns[kind], item.schedule))])
      ]
    ]))
    error_message = "variants: a schedule is at(2026-12-31T23:59:59), rate(1 day) or rate(2 hours), or cron with six fields: minute, hour, day, month, weekday and year, such as cron(0 20 * * ? *). Given: ${jsonencode({ for key, variant in var.variants : key => try({ for name, item in variant.autoscaling.schedules : name => try(item.schedule, null) }, {}) })}."
  }

  validation {
    condition = !anytrue(flatten([
      for variant in values(var.variants) : [
        for item in try(values(variant.autoscaling.schedules), []) :
        !try(item.min_capacity >= 1 && item.min_capacity <= item.max_capacity && alltrue([for n in [item.min_capacity, item.max_capacity] : floor(n) == n]), item == null)
      ]
    ]))
    error_message = "variants: a schedule needs whole numbers 1 <= min_capacity <= max_capacity. Given: ${jsonencode({ for key, variant in var.variants : key => try({ for name, item in variant.autoscaling.schedules : name => try([item.min_capacity, item.max_capacity], null) }, {}) })}."
  }

  # The provider reads times back in UTC: any other spelling would be a change in every plan.
  validation {
    condition = !anytrue(flatten([
      for variant in values(var.variants) : [
        for item in try(values(variant.autoscaling.schedules), []) :
        anytrue([for time in try([item.start_time, item.end_time], []) : time != null && !can(regex("^[0-9-]{10}T[0-9:]{8}Z$", time))])
      ]
    ]))
    error_message = "variants: start_time and end_time of a schedule are in UTC, such as 2026-12-31T23:59:59Z. Given: ${jsonencode({ for key, variant in var.variants : key => try({ for name, item in variant.autoscaling.schedules : name => try([item.start_time, item.end_time], null) }, {}) })}."
  }
  validation {
    condition = !anytrue(flatten([
      for variant in values(var.variants) : [
        for name in try(keys(variant.autoscaling.schedules), []) : !can(regex("^[^ :/|[:cntrl:]]([^:/|[:cntrl:]]{0,254}[^ :/|[:cntrl:]])?$", name))
      ]
    ]))
    error_message = "variants: the name of a schedule has 1 to 256 characters, without a colon, slash or bar in it and no space at its ends. Given: ${jsonencode({ for key, variant in var.variants : key => try(keys(variant.autoscaling.schedules), []) })}."
  }

  validation {
    condition = !anytrue(flatten([
      for variant in values(var.variants) : [
        for item in try(values(variant.autoscaling.schedules), []) : try(timecmp(item.start_time, item.end_time) >= 0, false)
      ]
    ]))
    error_message = "variants: a schedule's start_time is not before its end_time. Given: ${jsonencode({ for key, variant in var.variants : key => try({ for name, item in variant.autoscaling.schedules : name => try([item.start_time, item.end_time], null) }, {}) })}."
  }
}
