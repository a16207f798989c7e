# Updates

variable "deployment" {
  description = <<-EOT
    How an update reaches the instances. Old instances serve until new ones are healthy, in every strategy.

    - `strategy`: `ALL_AT_ONCE`, `CANARY` or `LINEAR` (blue/green), or `ROLLING`, which needs fewer extra instances but knows one variant only.
    - `step`: the canary, each linear step, or each rolling batch: `INSTANCE_COUNT` or `CAPACITY_PERCENT`, and how much. At most half of the variant's instances.
    - `rollback_step`: batch of a rolling deployment's way back. Null: all at once.
    - `wait_seconds`: how long the alarms are watched after each step, 0 to 3600.
    - `termination_wait_seconds`: how much longer the old instances stay, 0 to 3600.
    - `timeout_seconds`: 600 to 14400 for the whole update. Null for AWS's own. All the waits of an update together are less than this, and 3000 at most: the provider gives up after an hour, ten minutes of which the instances need to start.
    - `rollback_on`: alarms of the module (keys as in `alarms`) that roll an update back. They can change at any time.
    - `rollback_alarm_names`: CloudWatch alarms of your own that do so as well.
    - `rollback_enabled`: whether the endpoint has a rollback configuration at all. The provider **replaces** an endpoint to which one is added or from which it is taken, so it is there from creation; with no alarm in it, one that never goes off holds its place. `false`, with nothing in the two above, is for an endpoint made elsewhere that is imported.
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
    rollback_enabled         = optional(bool, true)
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
      for variant in values(var.variants) : try(variant.instance_count >= 2 && (
        var.deployment.step.type == "INSTANCE_COUNT" ? var.deployment.step.value <= variant.instance_count / 2 : var.deployment.step.value <= 50
      ), variant == null)
    ])
    error_message = "deployment.strategy ${var.deployment.strategy} needs two instances or more in every variant, and a step of at most half of them. Raise instance_count, make the step smaller, or use ALL_AT_ONCE. The step is ${jsonencode(var.deployment.step)}, the instance counts are ${jsonencode({ for key, variant in var.variants : key => try(variant.instance_count, null) })}."
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
      for seconds in [var.deployment.wait_seconds, var.deployment.termination_wait_seconds] : seconds >= 0 && seconds <= 3600 && floor(seconds) == seconds
    ]) && try(var.deployment.timeout_seconds >= 600 && var.deployment.timeout_seconds <= 14400 && floor(var.deployment.timeout_seconds) == var.deployment.timeout_seconds, var.deployment.timeout_seconds == null)
    error_message = "deployment.wait_seconds and deployment.termination_wait_seconds are whole numbers, 0 to 3600, and deployment.timeout_seconds is 600 to 14400."
  }

  # A step of n percent or instances makes so many steps; a canary makes two, all at once one. Each of them waits.
  validation {
    condition = alltrue([
      for variant in values(var.variants) : try(
        var.deployment.wait_seconds * lookup({
          ALL_AT_ONCE = 1
          CANARY      = 2
          }, var.deployment.strategy,
          ceil((var.deployment.step.type == "CAPACITY_PERCENT" ? 100 : variant.instance_count) / var.deployment.step.value)
        )
        + (var.deployment.strategy == "ROLLING" ? 0 : var.deployment.termination_wait_seconds)
        < min(coalesce(var.deployment.timeout_seconds, 3001), 3001),
        true
      )
    ])
    error_message = "deployment would not end in time. Its waits, wait_seconds after each step and termination_wait_seconds at the end, come to ${join(", ", [for key, variant in var.variants : try("${var.deployment.wait_seconds * lookup({ ALL_AT_ONCE = 1, CANARY = 2 }, var.deployment.strategy, ceil((var.deployment.step.type == "CAPACITY_PERCENT" ? 100 : variant.instance_count) / var.deployment.step.value)) + (var.deployment.strategy == "ROLLING" ? 0 : var.deployment.termination_wait_seconds)} seconds for ${key}", key)])}. They have to be less than timeout_seconds, where it is given, and 3000 seconds at most, since the provider gives an update up after an hour and the instances need some minutes to start. Wait less, or take larger steps."
  }

  validation {
    condition     = alltrue([for key in var.deployment.rollback_on : try(contains(keys(local.alarm_kinds), key), false)])
    error_message = "deployment.rollback_on names an alarm that the module does not have: ${jsonencode(setsubtract(var.deployment.rollback_on, keys(local.alarm_kinds)))}. Its alarms: ${join(", ", keys(local.alarm_kinds))}. Others go into rollback_alarm_names."
  }

  validation {
    condition     = alltrue([for name in var.deployment.rollback_alarm_names : try(length(name) >= 1 && length(name) <= 255 && !startswith(name, "arn:"), false)])
    error_message = "deployment.rollback_alarm_names has ${jsonencode(var.deployment.rollback_alarm_names)}. Give the alarms' names, not their ARNs."
  }

  validation {
    condition     = length(var.deployment.rollback_on) * length(var.variants) + length(var.deployment.rollback_alarm_names) <= 10
    error_message = "Too many alarms to roll back on: AWS takes 10, and each entry of deployment.rollback_on counts once for every variant. Name fewer."
  }

  validation {
    condition     = var.deployment.rollback_enabled || length(var.deployment.rollback_on) + length(var.deployment.rollback_alarm_names) == 0
    error_message = "deployment.rollback_enabled is false, so no alarm can roll an update back. Set rollback_on = [] and leave rollback_alarm_names out; or leave rollback_enabled at true."
  }
}
