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

    `targets` watches single models, under names of your choice: an alarm each on the 99th percentile of the time in the container, in seconds, over the calls whose `TargetModel` matches `target` (`*` stands for any characters), from the access log of this project's own image. It needs `logs.create`.
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
    targets = optional(map(object({
      target             = string
      p99_seconds        = number
      period_seconds     = optional(number, 300)
      evaluation_periods = optional(number, 3)
    })), {})
  })
  default  = {}
  nullable = false

  validation {
    condition     = length(setsubtract(keys(var.alarms.settings), keys(local.alarm_kinds))) == 0
    error_message = "alarms.settings names an alarm that the module does not have: ${join(", ", setsubtract(keys(var.alarms.settings), keys(local.alarm_kinds)))}. Its alarms: ${join(", ", keys(local.alarm_kinds))}."
  }

  validation {
    condition     = !anytrue([for item in values(var.alarms.settings) : try(!contains([10, 30], item.period_seconds) && (item.period_seconds % 60 != 0 || item.period_seconds <= 0), false)])
    error_message = "alarms.settings: period_seconds is 10, 30 or a multiple of 60. Given: ${jsonencode({ for key, item in var.alarms.settings : key => try(item.period_seconds, null) })}."
  }

  validation {
    condition     = !anytrue([for item in values(var.alarms.settings) : anytrue([for n in try([item.evaluation_periods, item.datapoints_to_alarm], []) : try(n < 1 || floor(n) != n, false)])])
    error_message = "alarms.settings: evaluation_periods and datapoints_to_alarm are whole numbers, 1 or more. Given: ${jsonencode(var.alarms.settings)}."
  }

  validation {
    condition     = !anytrue([for key, item in var.alarms.settings : try(item.datapoints_to_alarm > coalesce(item.evaluation_periods, local.alarm_kinds[key].evaluation_periods), false)])
    error_message = "alarms.settings: datapoints_to_alarm is at most evaluation_periods. Given: ${jsonencode({ for key, item in var.alarms.settings : key => try([item.datapoints_to_alarm, item.evaluation_periods], null) })}."
  }

  validation {
    condition     = !anytrue([for key, item in var.alarms.settings : try(coalesce(item.period_seconds, local.alarm_kinds[key].period) * coalesce(item.evaluation_periods, local.alarm_kinds[key].evaluation_periods) > 86400, false)])
    error_message = "alarms.settings: CloudWatch looks back one day at most, so period_seconds times evaluation_periods is 86400 or less. Given: ${jsonencode({ for key, item in var.alarms.settings : key => try([item.period_seconds, item.evaluation_periods], null) })}."
  }

  validation {
    condition     = alltrue([for key in var.deployment.rollback_on : try(var.alarms.settings[key].enabled, true)])
    error_message = "alarms.settings turns off an alarm that deployment.rollback_on needs: ${join(", ", [for key in var.deployment.rollback_on : key if !try(var.alarms.settings[key].enabled, true)])}. Take it out of one of the two."
  }

  validation {
    condition = alltrue([
      for key, item in var.alarms.targets : try(
        can(regex("^[a-zA-Z0-9_-]{1,64}$", key)) && can(regex("^[^/\"\\s][^\"\\s]{0,511}$", item.target)) && item.p99_seconds > 0
        && item.period_seconds >= 60 && item.period_seconds % 60 == 0 && item.evaluation_periods >= 1 && floor(item.evaluation_periods) == item.evaluation_periods,
        false
      )
    ])
    error_message = "alarms.targets: a name has letters, digits, hyphens and underscores; target is a TargetModel or a pattern such as \"bert-*\"; p99_seconds is more than 0; period_seconds is a multiple of 60; evaluation_periods is a whole number. Given: ${jsonencode(var.alarms.targets)}."
  }

  validation {
    condition     = length([for key in keys(var.alarms.targets) : key if contains(keys(var.variants), "target") && contains(keys(local.alarm_kinds), key)]) == 0
    error_message = "alarms.targets has a name that is the name of an alarm (${join(", ", [for key in keys(var.alarms.targets) : key if contains(keys(local.alarm_kinds), key)])}), and a variant is called \"target\": for CloudWatch the two alarms would be one. Choose another name."
  }

  validation {
    condition     = length(var.alarms.targets) == 0 || var.logs.create
    error_message = "alarms.targets reads the containers' log group, which has to be there before the endpoint. Set logs.create = true, or leave targets out."
  }
}

variable "dashboard" {
  description = "Whether to create a CloudWatch dashboard that shows traffic, errors, latency and whether the models fit in memory; with `contributor_insights` also the models that are called and loaded most."
  type        = bool
  default     = false
  nullable    = false
}

variable "contributor_insights" {
  description = "Whether to create two CloudWatch Contributor Insights rules over the access log of this project's own image: calls, and loads of models that were not in memory, by target model. The stock image writes no such log."
  type        = bool
  default     = false
  nullable    = false

  validation {
    condition     = !var.contributor_insights || var.logs.create
    error_message = "contributor_insights reads the containers' log group, which has to be there before the endpoint. Set logs.create = true, or leave contributor_insights out."
  }
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
    condition     = contains(local.log_retention_days, var.logs.retention_days)
    error_message = "logs.retention_days is ${var.logs.retention_days}. CloudWatch takes ${join(", ", slice(local.log_retention_days, 1, length(local.log_retention_days)))}, and 0 for ever."
  }

  validation {
    condition     = var.logs.kms_key_arn == null || can(regex(local.patterns.kms_key, var.logs.kms_key_arn))
    error_message = "logs.kms_key_arn is \"${coalesce(var.logs.kms_key_arn, "null")}\". Give the key's ARN, not its ID or alias: CloudWatch Logs takes no other."
  }

  validation {
    condition     = var.logs.create || var.logs.kms_key_arn == null
    error_message = "logs.create is false, so SageMaker makes the log group, without a key: logs.kms_key_arn is for one that the module creates. Leave it out."
  }
}

variable "notifications" {
  description = <<-EOT
    Who hears of alarms, and of an endpoint that fails or rolls an update back: a topic of the module's own, topics that exist, or both.

    - `create_topic`: a new topic, with `emails` and `subscriptions` to it.
    - `emails`: addresses, known when Terraform plans and not marked as sensitive; each has to confirm.
    - `subscriptions`: the same for other protocols, or for addresses that are not known yet, under names of your choice: `{ pager = { protocol = "https", endpoint = … } }`.
    - `kms_key_arn`: encrypts the new topic; the key's policy must let `cloudwatch.amazonaws.com` and `events.amazonaws.com` use it.
    - `topic_arns`: topics that exist, under names of your choice. Their policies must let the same two publish.
  EOT
  type = object({
    create_topic = optional(bool, false)
    emails       = optional(set(string), [])
    subscriptions = optional(map(object({
      protocol = string
      endpoint = string
    })), {})
    kms_key_arn = optional(string)
    topic_arns  = optional(map(string), {})
  })
  default  = {}
  nullable = false

  validation {
    condition     = var.notifications.create_topic || (length(var.notifications.emails) + length(var.notifications.subscriptions) == 0 && var.notifications.kms_key_arn == null)
    error_message = "notifications.emails, notifications.subscriptions and notifications.kms_key_arn belong to the module's own topic. Set notifications.create_topic = true, or leave them out."
  }

  validation {
    condition     = !issensitive(var.notifications.emails)
    error_message = "notifications.emails comes from something that Terraform marks as a secret, such as an SSM parameter, and each address becomes part of a resource's address in the state. Give it to notifications.subscriptions instead: { oncall = { protocol = \"email\", endpoint = … } }."
  }

  validation {
    condition     = alltrue([for address in var.notifications.emails : can(regex("^[^@ ]+@[^@ ]+$", address))])
    error_message = "notifications.emails has something that is not an e-mail address: ${jsonencode([for address in var.notifications.emails : address if !can(regex("^[^@ ]+@[^@ ]+$", address))])}."
  }

  validation {
    condition     = alltrue([for item in values(var.notifications.subscriptions) : try(contains(["email", "email-json", "http", "https", "sms", "sqs", "lambda", "firehose", "application"], item.protocol) && length(item.endpoint) > 0, false)])
    error_message = "notifications.subscriptions: each has a protocol of SNS's (email, email-json, https, http, sms, sqs, lambda, firehose, application) and an endpoint. Given: ${jsonencode({ for key, item in var.notifications.subscriptions : key => try(item.protocol, null) })}."
  }

  validation {
    condition     = var.notifications.kms_key_arn == null || can(regex(local.patterns.kms_key, var.notifications.kms_key_arn))
    error_message = "notifications.kms_key_arn is \"${coalesce(var.notifications.kms_key_arn, "null")}\". Give the key's ARN, not its ID or alias: AWS's own alias/aws/sns would keep CloudWatch from publishing."
  }

  validation {
    condition     = alltrue([for arn in values(var.notifications.topic_arns) : can(regex("^arn:[a-z-]+:sns:[a-z0-9-]+:[0-9]{12}:", arn))]) && length(var.notifications.topic_arns) <= 4
    error_message = "notifications.topic_arns has at most four ARNs of SNS topics, each under a name of your choice: { oncall = \"arn:aws:sns:…\" }. Given: ${jsonencode(var.notifications.topic_arns)}."
  }

  validation {
    condition     = !contains(keys(var.notifications.topic_arns), "this")
    error_message = "notifications.topic_arns: \"this\" is the name of the module's own topic. Choose another name."
  }
}
