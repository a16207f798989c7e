# General

variable "create" {
  description = "Whether to create anything at all. With `false` the module creates nothing, and its outputs are null or empty."
  type        = bool
  default     = true
  nullable    = false
}

variable "name" {
  description = "Name of the endpoint, and the beginning of every other name. Where AWS allows fewer characters, the name is cut and ends in a hash of the whole."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-zA-Z0-9](-?[a-zA-Z0-9])*$", var.name))
    error_message = "name is \"${var.name}\". Use letters, digits and single hyphens, beginning and ending with a letter or a digit."
  }
}

variable "revision" {
  description = "Any text. A new value makes a new model and endpoint configuration with the same settings: for a moved image tag, or to go back to earlier settings after an update that AWS rolled back (see docs/module.md)."
  type        = string
  default     = ""
  nullable    = false
}

variable "tags" {
  description = "Tags for every resource that takes them, beside the provider's `default_tags`."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = length(var.tags) <= 50
    error_message = "tags has ${length(var.tags)} entries; AWS allows 50 on a resource."
  }

  validation {
    condition     = alltrue([for key in keys(var.tags) : !startswith(lower(key), "aws:")])
    error_message = "A tag's key begins with \"aws:\", which AWS keeps for itself. Choose another key."
  }
}

# What runs

variable "image_uri" {
  description = "Container image in ECR, with its tag or digest, for instance your own. It must carry the label `com.amazonaws.sagemaker.capabilities.multi-models=true`. Null for AWS's Hugging Face inference image, as `huggingface` describes it."
  type        = string
  default     = null

  validation {
    condition     = var.image_uri == null || can(regex("^[0-9]{12}\\.dkr\\.ecr\\.[a-z0-9-]+\\.[a-z0-9.-]+/[a-z0-9._/-]+(:[a-zA-Z0-9._-]+|@sha256:[0-9a-f]{64})$", var.image_uri))
    error_message = "image_uri is \"${coalesce(var.image_uri, "null")}\". SageMaker takes images from ECR: ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY:TAG, or @sha256:DIGEST in place of :TAG."
  }
}

variable "huggingface" {
  description = "Versions that make up the tag of AWS's Hugging Face inference image. CPU or GPU follows from each variant's instance type. Not used where an image URI is given."
  type = object({
    pytorch_version      = optional(string, "2.6.0")
    transformers_version = optional(string, "5.5.3")
    python_version       = optional(string, "py312")
    cuda_version         = optional(string, "cu124")
    os_version           = optional(string, "ubuntu22.04")
  })
  default  = {}
  nullable = false

  validation {
    condition     = can(regex("^[0-9]+\\.[0-9]+\\.[0-9]+$", var.huggingface.pytorch_version)) && can(regex("^[0-9]+\\.[0-9]+\\.[0-9]+$", var.huggingface.transformers_version))
    error_message = "huggingface.pytorch_version and huggingface.transformers_version are full versions, such as \"2.6.0\" and \"5.5.3\". AWS lists which of them there are images for."
  }

  validation {
    condition     = can(regex("^py3[0-9]+$", var.huggingface.python_version)) && can(regex("^cu[0-9]+$", var.huggingface.cuda_version))
    error_message = "huggingface.python_version is written as in the image's tag, such as \"py312\", and huggingface.cuda_version such as \"cu124\"."
  }
}

variable "environment" {
  description = "Environment variables of the container in every variant, for instance `{ SAGEMAKER_MODEL_SERVER_WORKERS = \"2\" }`. Not a place for secrets: whoever may describe the model can read them."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for key in keys(var.environment) : can(regex("^[a-zA-Z_][a-zA-Z0-9_]*$", key)) && length(key) <= 1024])
    error_message = "The name of an environment variable has letters, digits and underscores, does not begin with a digit, and is at most 1024 characters long."
  }
}

variable "model_cache_enabled" {
  description = "Whether SageMaker keeps models in memory after use. `false` loads and unloads a model with every call: right only for very many models that are each called rarely."
  type        = bool
  default     = true
  nullable    = false
}

variable "variants" {
  description = <<-EOT
    Production variants by name. Several of them share the traffic by weight; all serve the same models, those under the one prefix.

    - `instance_type`, `instance_count`: any CPU type, or a type with an NVIDIA GPU. With `autoscaling`, the count is where each update starts again.
    - `weight`: its part of the traffic is this over the sum of all.
    - `image_uri`, `environment`: this variant's own image, and variables on top of the module's.
    - `volume_size_gb`: 1 to 512, for instance types without a local disk. It has to hold every archive that is loaded, extracted.
    - `download_timeout_seconds`, `startup_timeout_seconds`: 60 to 3600; how long a model's download and the container's start may take.
    - `routing_strategy`: `LEAST_OUTSTANDING_REQUESTS` or `RANDOM`; null for AWS's own choice.
    - `inference_ami_version`, `enable_ssm_access`: as in AWS's `ProductionVariant`.
    - `autoscaling`: null, or the range, one or more targets to track, and schedules. `invocations_per_instance` is per minute; `cpu_utilization` counts 100 for each core; `memory_utilization` is percent, for models that crowd each other out. `schedules` are one-off `at(…)`, `rate(…)` or `cron(…)` changes of the range.
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
    condition     = alltrue([for key in keys(var.variants) : length(key) <= 63 && can(regex("^[a-zA-Z0-9](-*[a-zA-Z0-9])*$", key))])
    error_message = "A variant's name has at most 63 letters, digits and hyphens, beginning and ending with a letter or a digit."
  }

  validation {
    condition     = alltrue([for variant in values(var.variants) : can(regex("^ml\\.[a-z0-9-]+\\.[a-z0-9]+$", variant.instance_type))])
    error_message = "A variant's instance_type is not one of SageMaker's. They begin with \"ml.\", such as \"ml.m5.xlarge\"."
  }

  validation {
    condition     = alltrue([for variant in values(var.variants) : !can(regex("^ml\\.(inf|trn|dl|eia)[0-9]", variant.instance_type))])
    error_message = "Inferentia, Trainium and Gaudi instances (ml.inf*, ml.trn*, ml.dl*) cannot host a multi-model endpoint. Choose a CPU type or one with an NVIDIA GPU (ml.g4dn, ml.g5)."
  }

  validation {
    condition     = alltrue([for variant in values(var.variants) : variant.instance_count >= 1 && floor(variant.instance_count) == variant.instance_count])
    error_message = "A variant's instance_count is a whole number, 1 or more: a multi-model endpoint cannot scale to zero."
  }

  validation {
    condition     = alltrue([for variant in values(var.variants) : variant.weight >= 0]) && anytrue([for variant in values(var.variants) : variant.weight > 0])
    error_message = "A variant's weight is 0 or more, and one variant at least has more than 0, or nothing would get any traffic."
  }

  validation {
    condition     = alltrue([for variant in values(var.variants) : variant.image_uri == null || can(regex("^[0-9]{12}\\.dkr\\.ecr\\.[a-z0-9-]+\\.[a-z0-9.-]+/[a-z0-9._/-]+(:[a-zA-Z0-9._-]+|@sha256:[0-9a-f]{64})$", variant.image_uri))])
    error_message = "A variant's image_uri is not in ECR. SageMaker takes ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY:TAG, or @sha256:DIGEST in place of :TAG."
  }

  validation {
    condition = alltrue([
      for variant in values(var.variants) :
      !can(regex("^ml\\.[a-z]+[0-9]+g[a-z]*\\.", variant.instance_type)) || variant.image_uri != null || var.image_uri != null
    ])
    error_message = "A variant's instance type has an Arm processor (Graviton), and AWS's Hugging Face image is for x86 alone. Choose another type, or give an Arm image as image_uri."
  }

  validation {
    condition = alltrue([
      for variant in values(var.variants) :
      can(regex("^ml\\.(g|p)[0-9]", variant.instance_type)) || !can(regex("[:-](gpu|cu[0-9]{3})(-|$)", try(coalesce(variant.image_uri, var.image_uri), "")))
    ])
    error_message = "A variant has a GPU image on an instance type without a GPU. Choose a GPU type (ml.g4dn, ml.g5), or the image's CPU tag."
  }

  validation {
    condition     = alltrue([for variant in values(var.variants) : try(variant.volume_size_gb >= 1 && variant.volume_size_gb <= 512, variant.volume_size_gb == null)])
    error_message = "A variant's volume_size_gb is 1 to 512."
  }

  validation {
    condition = alltrue([
      for variant in values(var.variants) :
      variant.volume_size_gb == null || !can(regex("^ml\\.([a-z][0-9]+[a-z]*d[a-z]*|g[0-9][a-z]*|p[4-9][a-z0-9-]*)\\.", variant.instance_type))
    ])
    error_message = "A variant has a volume_size_gb, but its instance type comes with a local disk of fixed size. Leave volume_size_gb out."
  }

  validation {
    condition = alltrue(flatten([
      for variant in values(var.variants) : [
        for seconds in [variant.download_timeout_seconds, variant.startup_timeout_seconds] : try(seconds >= 60 && seconds <= 3600, seconds == null)
      ]
    ]))
    error_message = "A variant's download_timeout_seconds and startup_timeout_seconds are 60 to 3600."
  }

  validation {
    condition     = alltrue([for variant in values(var.variants) : variant.routing_strategy == null || contains(["LEAST_OUTSTANDING_REQUESTS", "RANDOM"], coalesce(variant.routing_strategy, "RANDOM"))])
    error_message = "A variant's routing_strategy is LEAST_OUTSTANDING_REQUESTS, RANDOM or null."
  }

  validation {
    condition     = alltrue([for scaling in values(var.variants)[*].autoscaling : try(scaling.min_capacity >= 1 && scaling.min_capacity <= scaling.max_capacity, scaling == null)])
    error_message = "A variant's autoscaling needs 1 <= min_capacity <= max_capacity: a multi-model endpoint cannot scale to zero."
  }

  validation {
    condition     = alltrue([for variant in values(var.variants) : try(variant.autoscaling.min_capacity <= variant.instance_count && variant.instance_count <= variant.autoscaling.max_capacity, variant.autoscaling == null)])
    error_message = "A variant's instance_count lies outside its autoscaling range. Every update of the endpoint starts again from instance_count: choose one between min_capacity and max_capacity."
  }

  validation {
    condition = alltrue([
      for scaling in values(var.variants)[*].autoscaling : try(
        length(compact([scaling.invocations_per_instance, scaling.cpu_utilization, scaling.memory_utilization])) > 0 || length(scaling.schedules) > 0,
        scaling == null
      )
    ])
    error_message = "A variant's autoscaling says nothing to act on. Give a target (invocations_per_instance; AWS's example for multi-model endpoints is 70), or schedules."
  }

  validation {
    condition = alltrue(flatten([
      for scaling in values(var.variants)[*].autoscaling : [
        for target in try([scaling.invocations_per_instance, scaling.cpu_utilization, scaling.memory_utilization], []) : try(target > 0, target == null)
      ]
    ]))
    error_message = "An autoscaling target (invocations_per_instance, cpu_utilization, memory_utilization) is more than 0."
  }

  validation {
    condition     = alltrue([for scaling in values(var.variants)[*].autoscaling : try(scaling.memory_utilization == null ? true : scaling.memory_utilization <= 100, true)])
    error_message = "autoscaling.memory_utilization is in percent, at most 100."
  }

  validation {
    condition = alltrue(flatten([
      for scaling in values(var.variants)[*].autoscaling : [
        for item in try(values(scaling.schedules), []) :
        can(regex("^(at|rate|cron)\\(.+\\)$", item.schedule)) && item.min_capacity >= 1 && item.min_capacity <= item.max_capacity
      ]
    ]))
    error_message = "An autoscaling schedule is at(…), rate(…) or cron(…), with 1 <= min_capacity <= max_capacity."
  }
}

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
}

variable "volume_kms_key_arn" {
  description = "ARN of the KMS key for the instances' storage volumes. Null for a key of AWS's. Instance types with a local disk encrypt it by themselves and take no key."
  type        = string
  default     = null

  validation {
    condition     = var.volume_kms_key_arn == null || can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/", var.volume_kms_key_arn))
    error_message = "volume_kms_key_arn is \"${coalesce(var.volume_kms_key_arn, "null")}\". Give the key's ARN, not its ID or alias: the execution role's policy names it."
  }

  validation {
    condition = var.volume_kms_key_arn == null || alltrue([
      for variant in values(var.variants) : !can(regex("^ml\\.([a-z][0-9]+[a-z]*d[a-z]*|g[0-9][a-z]*|p[4-9][a-z0-9-]*)\\.", variant.instance_type))
    ])
    error_message = "volume_kms_key_arn is given, but a variant's instance type has a local disk, for which SageMaker refuses a key (the disk encrypts itself). Leave the key out or choose another type."
  }
}

# Archives

variable "bucket" {
  description = <<-EOT
    The bucket that holds the archives.

    - `create`, `name`: with `create = false`, `name` is a bucket that exists, and nothing about it is changed. A new bucket's name is NAME-ACCOUNT-REGION unless given.
    - `force_destroy`: whether `terraform destroy` may delete a bucket with archives in it.
    - `kms_key_arn`: the key of its encryption, also for an existing bucket, so that the role may use it. Null for AES256.
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
    condition     = var.bucket.name == null || can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.bucket.name))
    error_message = "bucket.name is \"${coalesce(var.bucket.name, "null")}\". A bucket's name has 3 to 63 lower-case letters, digits, hyphens and dots; give it without s3://."
  }

  validation {
    condition     = var.bucket.kms_key_arn == null || can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/", var.bucket.kms_key_arn))
    error_message = "bucket.kms_key_arn is \"${coalesce(var.bucket.kms_key_arn, "null")}\". Give the key's ARN, not its ID or alias: the policies name it."
  }

  validation {
    condition     = var.bucket.noncurrent_version_expiration_days >= 0 && var.bucket.abort_incomplete_upload_days >= 0
    error_message = "bucket.noncurrent_version_expiration_days and bucket.abort_incomplete_upload_days are 1 or more, or 0 for never."
  }

  validation {
    condition     = var.bucket.create || (!var.bucket.force_destroy && !var.bucket.deny_overwrite && var.bucket.policy_json == null && var.bucket.access_log == null)
    error_message = "bucket.create is false, so the module changes nothing about the bucket: force_destroy, deny_overwrite, policy_json and access_log are for a bucket that it creates. Leave them out."
  }
}

variable "model_prefix" {
  description = "Prefix of the archives in the bucket, ending in a slash. The endpoint serves every archive below it, and its role reads nothing else. Channels lie beside it, in `channels/`."
  type        = string
  default     = "models/"
  nullable    = false

  validation {
    condition     = can(regex("^([a-zA-Z0-9_-][a-zA-Z0-9._-]*/)+$", var.model_prefix)) && length(var.model_prefix) <= 512
    error_message = "model_prefix is \"${var.model_prefix}\". Give a path of letters, digits, dots, hyphens and underscores that does not begin with a slash and ends in one, such as \"models/\"."
  }

  validation {
    condition     = !can(regex("(^|/)channels/$", var.model_prefix))
    error_message = "model_prefix is \"${var.model_prefix}\", but the channels are kept there. Choose another last folder, such as \"models/\"."
  }
}

# Who may do what

variable "role" {
  description = "The execution role. With `create = false`, `arn` is a role that exists, whose policies are then yours (docs/module.md lists what it needs). `policy_arns` are attached beside the module's own policy."
  type = object({
    create                   = optional(bool, true)
    arn                      = optional(string)
    name                     = optional(string)
    path                     = optional(string, "/")
    permissions_boundary_arn = optional(string)
    policy_arns              = optional(map(string), {})
  })
  default  = {}
  nullable = false

  validation {
    condition     = var.role.create ? var.role.arn == null : var.role.arn != null
    error_message = "role.arn goes with role.create = false, and the other way round: name the role that exists, or let the module create one."
  }

  validation {
    condition     = var.role.arn == null || can(regex("^arn:[a-z-]+:iam::[0-9]{12}:role/.+$", var.role.arn))
    error_message = "role.arn is \"${coalesce(var.role.arn, "null")}\". Give a role's ARN: arn:aws:iam::ACCOUNT:role/NAME."
  }

  validation {
    condition     = var.role.name == null || can(regex("^[a-zA-Z0-9+=,.@_-]{1,64}$", var.role.name))
    error_message = "role.name is \"${coalesce(var.role.name, "null")}\". A role's name has at most 64 letters, digits and characters of +=,.@_-"
  }

  validation {
    condition     = can(regex("^/([a-zA-Z0-9+=,.@_-]+/)*$", var.role.path))
    error_message = "role.path is \"${var.role.path}\". A path begins and ends with a slash, such as \"/service/\"."
  }

  validation {
    condition     = var.role.create || (var.role.name == null && var.role.permissions_boundary_arn == null && length(var.role.policy_arns) == 0)
    error_message = "role.create is false, so the module changes nothing about the role: name, permissions_boundary_arn and policy_arns are for a role that it creates. Leave them out."
  }
}

variable "invoke_policies" {
  description = "IAM policies to create, by name, each allowing calls to the target models that match one of its patterns and to no other: `{ team-a = [\"team-a/*\"] }`. `*` stands for any characters, `?` for one. Attach them by the ARNs in the output `invoke_policies`."
  type        = map(list(string))
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for key in keys(var.invoke_policies) : can(regex("^[a-zA-Z0-9+=,.@_-]{1,40}$", key))])
    error_message = "The name of an invoke policy has 1 to 40 letters, digits and characters of +=,.@_-"
  }

  validation {
    condition     = alltrue([for patterns in values(var.invoke_policies) : length(patterns) > 0])
    error_message = "An invoke policy has no pattern, so it would allow nothing. Give the target models that it is for, such as \"team-a/*\"."
  }

  validation {
    condition     = alltrue([for pattern in flatten(values(var.invoke_policies)) : length(pattern) >= 1 && length(pattern) <= 1024 && !startswith(pattern, "/") && !startswith(pattern, "s3:")])
    error_message = "A pattern is a TargetModel: a path relative to the model prefix, without s3:// and without a slash at its beginning, such as \"team-a/*\"."
  }
}

variable "create_publisher_policy" {
  description = "Whether to create an IAM policy for what publishes models, such as CI: it puts new archives under the prefix and moves channels, and can neither replace nor delete an archive. The output `publisher_policy_json` has the same without creating it."
  type        = bool
  default     = false
  nullable    = false
}

# Updates

variable "deployment" {
  description = <<-EOT
    How an update reaches the instances. Old instances serve until new ones are healthy, in every strategy.

    - `strategy`: `ALL_AT_ONCE`, `CANARY` or `LINEAR` (blue/green), or `ROLLING`, which needs fewer extra instances but knows one variant only.
    - `step`: the canary, each linear step, or each rolling batch: `INSTANCE_COUNT` or `CAPACITY_PERCENT`, and how much. At most half of the variant's instances.
    - `rollback_step`: batch of a rolling deployment's way back. Null: all at once.
    - `wait_seconds`: how long the alarms are watched after each step, 0 to 3600.
    - `termination_wait_seconds`: how much longer the old instances stay, 0 to 3600.
    - `timeout_seconds`: 600 to 14400 for the whole update. Null for AWS's own.
    - `rollback_on`: alarms of the module (keys as in `alarms`) that roll an update back. Going from none to some, or back, replaces the endpoint: decide before the first apply.
    - `rollback_alarm_names`: CloudWatch alarms of your own that do so as well.
  EOT
  type = object({
    strategy = optional(string, "ALL_AT_ONCE")
    step = optional(object({
      type  = optional(string, "INSTANCE_COUNT")
      value = optional(number, 1)
    }), {})
    rollback_step = optional(object({
      type  = optional(string, "INSTANCE_COUNT")
      value = optional(number, 1)
    }))
    wait_seconds             = optional(number, 300)
    termination_wait_seconds = optional(number, 0)
    timeout_seconds          = optional(number)
    rollback_on              = optional(set(string), ["errors_5xx"])
    rollback_alarm_names     = optional(set(string), [])
  })
  default  = {}
  nullable = false

  validation {
    condition     = contains(["ALL_AT_ONCE", "CANARY", "LINEAR", "ROLLING"], var.deployment.strategy)
    error_message = "deployment.strategy is \"${var.deployment.strategy}\". Choose ALL_AT_ONCE, CANARY, LINEAR or ROLLING."
  }

  validation {
    condition = alltrue([
      for step in [var.deployment.step, var.deployment.rollback_step] :
      step == null ? true : contains(["INSTANCE_COUNT", "CAPACITY_PERCENT"], step.type) && step.value >= 1 && floor(step.value) == step.value
    ])
    error_message = "deployment.step and deployment.rollback_step have a type INSTANCE_COUNT or CAPACITY_PERCENT and a whole value of 1 or more."
  }

  validation {
    condition = var.deployment.strategy == "ALL_AT_ONCE" || alltrue([
      for variant in values(var.variants) : variant.instance_count >= 2 && (
        var.deployment.step.type == "INSTANCE_COUNT" ? var.deployment.step.value <= variant.instance_count / 2 : var.deployment.step.value <= 50
      )
    ])
    error_message = "deployment.strategy ${var.deployment.strategy} needs two instances or more in every variant, and a step of at most half of them. Raise instance_count, make the step smaller, or use ALL_AT_ONCE."
  }

  validation {
    condition = var.deployment.step.type != "CAPACITY_PERCENT" || (
      var.deployment.strategy == "LINEAR" ? var.deployment.step.value >= 10 : var.deployment.strategy == "ROLLING" ? var.deployment.step.value >= 5 : true
    )
    error_message = "deployment.step is too small: AWS wants 10 to 50 percent of the capacity for LINEAR and 5 to 50 percent for ROLLING."
  }

  validation {
    condition     = var.deployment.strategy != "ROLLING" || length(var.variants) == 1
    error_message = "deployment.strategy ROLLING works with one variant only. Use CANARY, LINEAR or ALL_AT_ONCE with several."
  }

  validation {
    condition     = var.deployment.rollback_step == null || var.deployment.strategy == "ROLLING"
    error_message = "deployment.rollback_step is for the strategy ROLLING; blue/green updates go back all at once. Leave it out."
  }

  validation {
    condition = alltrue([
      for seconds in [var.deployment.wait_seconds, var.deployment.termination_wait_seconds] : seconds >= 0 && seconds <= 3600
    ]) && try(var.deployment.timeout_seconds >= 600 && var.deployment.timeout_seconds <= 14400, var.deployment.timeout_seconds == null)
    error_message = "deployment.wait_seconds and deployment.termination_wait_seconds are 0 to 3600, deployment.timeout_seconds is 600 to 14400."
  }

  validation {
    condition     = alltrue([for key in var.deployment.rollback_on : contains(["errors_5xx", "model_errors", "latency", "overhead", "cache_hit", "load_wait", "disk", "memory", "thrash"], key)])
    error_message = "deployment.rollback_on names an alarm that the module does not have. Its alarms: errors_5xx, model_errors, latency, overhead, cache_hit, load_wait, disk, memory, thrash. Others go into rollback_alarm_names."
  }

  validation {
    condition     = length(var.deployment.rollback_on) * length(var.variants) + length(var.deployment.rollback_alarm_names) <= 10
    error_message = "Too many alarms to roll back on: AWS takes 10, and each entry of deployment.rollback_on counts once for every variant. Name fewer."
  }
}

# Watching

variable "alarms" {
  description = <<-EOT
    CloudWatch alarms for every variant. `enabled` creates all of them; those in `deployment.rollback_on` are there in any case. `settings` changes single ones, by key:

    - `errors_5xx`: part of the calls that failed in the container or the platform (0.05).
    - `model_errors`: part of the calls that the container did not answer with success, bad input included (0.25).
    - `latency`: 99th percentile of the container's time, seconds (10).
    - `overhead`: 99th percentile of SageMaker's own time on top, loading of models included, seconds (10).
    - `cache_hit`: part of the calls that found their model loaded, alarming below (0.8).
    - `load_wait`: 90th percentile of how long calls waited for their model, seconds (30).
    - `disk`, `memory`: percent in use (85, 90).
    - `thrash`: models unloaded to make room, in five minutes (20).
  EOT
  type = object({
    enabled = optional(bool, false)
    settings = optional(map(object({
      enabled             = optional(bool, true)
      threshold           = optional(number)
      period_seconds      = optional(number)
      evaluation_periods  = optional(number)
      datapoints_to_alarm = optional(number)
    })), {})
  })
  default  = {}
  nullable = false

  validation {
    condition     = alltrue([for key in keys(var.alarms.settings) : contains(["errors_5xx", "model_errors", "latency", "overhead", "cache_hit", "load_wait", "disk", "memory", "thrash"], key)])
    error_message = "alarms.settings names an alarm that the module does not have: ${join(", ", keys(var.alarms.settings))}. Its alarms: errors_5xx, model_errors, latency, overhead, cache_hit, load_wait, disk, memory, thrash."
  }

  validation {
    condition     = alltrue([for item in values(var.alarms.settings) : item.period_seconds == null ? true : contains([10, 30], item.period_seconds) || item.period_seconds % 60 == 0])
    error_message = "An alarm's period_seconds is 10, 30 or a multiple of 60."
  }

  validation {
    condition     = alltrue([for item in values(var.alarms.settings) : try(item.datapoints_to_alarm <= item.evaluation_periods, true)])
    error_message = "An alarm's datapoints_to_alarm is at most its evaluation_periods."
  }

  validation {
    condition     = alltrue([for key in var.deployment.rollback_on : try(var.alarms.settings[key].enabled, true)])
    error_message = "alarms.settings turns off an alarm that deployment.rollback_on needs. Take it out of one of the two."
  }
}

variable "dashboard" {
  description = "Whether to create a CloudWatch dashboard that shows traffic, errors, latency and whether the models fit in memory."
  type        = bool
  default     = false
  nullable    = false
}

variable "logs" {
  description = "The containers' log group. With `create = false` SageMaker makes one that never expires. `retention_days` is one of CloudWatch's, 0 for ever."
  type = object({
    create         = optional(bool, true)
    retention_days = optional(number, 30)
    kms_key_arn    = optional(string)
  })
  default  = {}
  nullable = false

  validation {
    condition     = contains([0, 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.logs.retention_days)
    error_message = "logs.retention_days is ${var.logs.retention_days}. CloudWatch takes 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288 or 3653, and 0 for ever."
  }
}

variable "notifications" {
  description = "Who hears of alarms, and of an endpoint that fails or rolls an update back: a topic of the module's own with e-mail addresses, topics that exist (their policies must let `cloudwatch.amazonaws.com` and `events.amazonaws.com` publish), or both. `kms_key_arn` encrypts the new topic; the key's policy must let the same two use it."
  type = object({
    create_topic = optional(bool, false)
    emails       = optional(set(string), [])
    kms_key_arn  = optional(string)
    topic_arns   = optional(map(string), {})
  })
  default  = {}
  nullable = false

  validation {
    condition     = var.notifications.create_topic || (length(var.notifications.emails) == 0 && var.notifications.kms_key_arn == null)
    error_message = "notifications.emails and notifications.kms_key_arn belong to the module's own topic. Set notifications.create_topic = true, or leave them out."
  }

  validation {
    condition     = alltrue([for address in var.notifications.emails : can(regex("^[^@ ]+@[^@ ]+$", address))])
    error_message = "notifications.emails has something that is not an e-mail address."
  }

  validation {
    condition     = alltrue([for arn in values(var.notifications.topic_arns) : can(regex("^arn:[a-z-]+:sns:", arn))]) && length(var.notifications.topic_arns) <= 4
    error_message = "notifications.topic_arns has at most four ARNs of SNS topics, each under a name of your choice: { oncall = \"arn:aws:sns:…\" }."
  }
}

variable "data_capture" {
  description = <<-EOT
    Requests and answers to keep in S3; null for none. They hold whatever callers send: choose the bucket, key and retention for that.

    - `sampling_percentage`: 1 to 100.
    - `destination_uri`: s3://BUCKET/PREFIX. Null for `data-capture/` beside the model prefix.
    - `kms_key_arn`: the key to encrypt them with.
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
    condition     = try(var.data_capture.sampling_percentage >= 1 && var.data_capture.sampling_percentage <= 100, var.data_capture == null)
    error_message = "data_capture.sampling_percentage is 1 to 100. To capture nothing, leave data_capture out."
  }

  validation {
    condition     = try(var.data_capture.destination_uri == null ? true : can(regex("^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$", var.data_capture.destination_uri)), true)
    error_message = "data_capture.destination_uri is not an address in S3. Give s3://BUCKET/PREFIX."
  }

  validation {
    condition     = try(length(var.data_capture.modes) > 0 && alltrue([for mode in var.data_capture.modes : contains(["Input", "Output"], mode)]), var.data_capture == null)
    error_message = "data_capture.modes is Input, Output or both."
  }
}
