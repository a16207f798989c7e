# Who may do what

variable "role" {
  description = <<-EOT
    The execution role. With `create = false`, `arn` is a role that exists, whose policies are then yours (docs/module.md lists what it needs).

    - `name`, `path`: IAM knows one role of a name, whatever the path: with a `name` of your own, a new `path` needs a new name as well.
    - `permissions_boundary_arn`: the most that the role may do.
    - `policy_arns`: policies to attach beside the module's own, under names of your choice.
    - `policy_json`: statements of your own, as JSON, that become part of the module's policy.
  EOT
  type = object({
    create                   = optional(bool, true)
    arn                      = optional(string)
    name                     = optional(string)
    path                     = optional(string, "/")
    permissions_boundary_arn = optional(string)
    policy_arns              = optional(map(string), {})
    policy_json              = optional(string)
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
    condition     = alltrue([for arn in concat(values(var.role.policy_arns), [coalesce(var.role.permissions_boundary_arn, "arn:aws:iam::aws:policy/none")]) : can(regex("^arn:[a-z-]+:iam::([0-9]{12}|aws):policy/.+$", arn))])
    error_message = "role.policy_arns and role.permissions_boundary_arn are ARNs of policies, arn:aws:iam::ACCOUNT:policy/NAME. Given: ${jsonencode(merge(var.role.policy_arns, { permissions_boundary_arn = var.role.permissions_boundary_arn }))}."
  }

  validation {
    condition     = var.role.policy_json == null || can(jsondecode(var.role.policy_json).Statement)
    error_message = "role.policy_json is not a policy. Give JSON with statements, such as jsonencode({ Version = \"2012-10-17\", Statement = [...] }) or the json of an aws_iam_policy_document."
  }

  validation {
    condition     = !anytrue([for statement in try(flatten([jsondecode(var.role.policy_json).Statement]), []) : contains(local.execution_sids, try(statement.Sid, ""))])
    error_message = "role.policy_json has a statement with a Sid of the module's own, one of which would replace the other. Choose a Sid that is none of ${join(", ", local.execution_sids)}."
  }

  validation {
    condition     = var.role.create || (var.role.name == null && var.role.permissions_boundary_arn == null && length(var.role.policy_arns) == 0 && var.role.policy_json == null)
    error_message = "role.create is false, so the module changes nothing about the role: name, permissions_boundary_arn, policy_arns and policy_json are for a role that it creates. Leave them out."
  }
}

variable "invoke_policies" {
  description = "IAM policies to create, by name, each allowing calls to the target models that match one of its patterns and to no other: `{ team-a = [\"team-a/*\"] }`. `*` stands for any characters, `?` for one. Attach them by the ARNs in the output `invoke_policies`."
  type        = map(list(string))
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for key in keys(var.invoke_policies) : can(regex("^[a-zA-Z0-9+=,.@_-]{1,40}$", key))])
    error_message = "The name of an invoke policy has 1 to 40 letters, digits and characters of +=,.@_- Given: ${join(", ", [for key in keys(var.invoke_policies) : "\"${key}\""])}."
  }

  validation {
    condition     = length(distinct([for key in keys(var.invoke_policies) : lower(key)])) == length(var.invoke_policies)
    error_message = "invoke_policies has names that differ in capitals only, which are one name for IAM. Rename one of ${join(", ", keys(var.invoke_policies))}."
  }

  # Policies are called ENDPOINT-REGION-invoke-NAME: such a name could be that of another endpoint's policy.
  validation {
    condition     = length([for key in keys(var.invoke_policies) : key if can(regex("[a-z]-[0-9]+-(invoke-|publish$)", key))]) == 0
    error_message = "invoke_policies: the name of a policy looks like the end of another endpoint's policy (REGION-invoke-… or REGION-publish). Rename ${join(", ", [for key in keys(var.invoke_policies) : "\"${key}\"" if can(regex("[a-z]-[0-9]+-(invoke-|publish$)", key))])}."
  }

  validation {
    condition     = alltrue([for patterns in values(var.invoke_policies) : try(length(patterns) > 0, false)])
    error_message = "An invoke policy has no pattern, so it would allow nothing: ${join(", ", [for key, patterns in var.invoke_policies : key if !try(length(patterns) > 0, false)])}. Give the target models that it is for, such as \"team-a/*\"."
  }

  validation {
    condition     = alltrue([for pattern in flatten([for patterns in values(var.invoke_policies) : patterns if patterns != null]) : can(regex("^[^/]", pattern)) && !can(regex("^s3:", pattern)) && try(length(pattern) <= 1024, false)])
    error_message = "A pattern is a TargetModel: a path relative to the model prefix, without s3:// and without a slash at its beginning, such as \"team-a/*\". Given: ${jsonencode(var.invoke_policies)}."
  }
}

variable "create_publisher_policy" {
  description = "Whether to create an IAM policy for what publishes models, such as CI: it puts new archives under the prefix, capacity plans beside it, and moves channels, and can neither replace nor delete an archive. The output `publisher_policy_json` has the same without creating it."
  type        = bool
  default     = false
  nullable    = false
}
