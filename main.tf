data "aws_caller_identity" "current" {
  count = var.create ? 1 : 0
}

data "aws_partition" "current" {
  count = var.create ? 1 : 0
}

data "aws_region" "current" {
  count = var.create ? 1 : 0
}

# What the provider adds to the tags of every resource. Makes no API call.
data "aws_default_tags" "current" {
  count = var.create ? 1 : 0
}

# Makes no API call: the provider carries the registries' account numbers. It is there whether it is used or not, since
# an image URI that is not known yet could not decide on it; and where every variant has an image of its own, it looks at
# a region that the provider surely knows, since the endpoint's may be newer than the provider.
data "aws_sagemaker_prebuilt_ecr_image" "this" {
  count = var.create ? 1 : 0

  repository_name = "huggingface-pytorch-inference"
  region          = local.registry_region
  # The data source's own default knows only amazonaws.com.
  dns_suffix = local.dns_suffix
}

# Where the endpoint is. With depends_on on the module call, Terraform reads the data sources only while it applies,
# whenever what the module depends on is about to change, and names made of them would be unknown to the plan, which would
# replace bucket, role and models. A resource whose input is ignored once it is there says it to every later plan.
resource "terraform_data" "place" {
  count = var.create ? 1 : 0

  input = local.looked_up

  lifecycle {
    ignore_changes = [input]

    # A partition that a test's mock makes up is none of AWS's.
    precondition {
      condition     = !startswith(local.looked_up.partition, "aws") || length(local.other_partitions) == 0
      error_message = "The region ${local.looked_up.region} is in the partition ${local.looked_up.partition}, where nothing has such an ARN: ${join(", ", local.other_partitions)}. ARNs begin with arn:${local.looked_up.partition}: there."
    }

    # What one resource may have, whether the provider or the caller gives it.
    precondition {
      condition     = length(local.tag_keys) <= 50
      error_message = "Together with the provider's default_tags there are ${length(local.tag_keys)} tags; AWS allows 50 on a resource. Take some away from tags, or from default_tags."
    }

    precondition {
      condition     = length(distinct([for key in local.tag_keys : lower(key)])) == length(local.tag_keys)
      error_message = "tags and the provider's default_tags have keys that differ in capitals only, which are one key for IAM. Write them alike: ${join(", ", [for key in local.tag_keys : "\"${key}\"" if length([for other in local.tag_keys : other if lower(other) == lower(key)]) > 1])}."
    }
  }
}

# The same for AWS's registry, in the region that is looked at.
resource "terraform_data" "registry" {
  count = var.create ? 1 : 0

  input            = local.looked_up_registry
  triggers_replace = local.registry_region

  lifecycle {
    ignore_changes = [input]

    # Not a postcondition of the place: its `self` is an error in a plan with -refresh-only before it is there.
    precondition {
      condition     = local.place.account_id == local.looked_up.account_id && local.place.region == local.looked_up.region
      error_message = "The provider works in account ${local.looked_up.account_id} and region ${local.looked_up.region}, but the endpoint ${local.endpoint_name} was made in account ${local.account_id} and region ${local.region}, where everything about it is. For a second region or account call the module again, with another provider. To move it, destroy it with the provider that it was made with, and apply then."
    }
  }
}

locals {
  # With create = false nothing is looked up, and names and ARNs built of these go nowhere.
  looked_up = {
    account_id = var.create ? data.aws_caller_identity.current[0].account_id : "000000000000"
    partition  = var.create ? data.aws_partition.current[0].partition : "aws"
    dns_suffix = var.create ? data.aws_partition.current[0].dns_suffix : "amazonaws.com"
    # `id` reads the same in provider 5 and 6; `name` is deprecated in 6, and `region` is not there in 5.
    region = var.create ? data.aws_region.current[0].id : "none"
  }
  # A plan with -refresh-only has no resource that is not there yet.
  place      = try(terraform_data.place[0].input, local.looked_up)
  account_id = local.place.account_id
  partition  = local.place.partition
  dns_suffix = local.place.dns_suffix
  region     = local.place.region

  # ARNs that were given and name another partition than the provider's.
  other_partitions = [
    for arn in nonsensitive(concat(
      local.regional_keys,
      [for arn in [var.role.arn, var.role.permissions_boundary_arn, var.logs.kms_key_arn, var.notifications.kms_key_arn] : nonsensitive(arn) if nonsensitive(arn != null)],
      [for arn in values(var.role.policy_arns) : nonsensitive(arn)],
      [for arn in values(var.notifications.topic_arns) : nonsensitive(arn)],
    )) : arn if split(":", arn)[1] != local.looked_up.partition
  ]

  registry_region    = anytrue([for uri in values(local.given_images) : uri == null]) ? local.region : "us-east-1"
  looked_up_registry = try(split(":", data.aws_sagemaker_prebuilt_ecr_image.this[0].registry_path)[0], "")
  registry           = try(terraform_data.registry[0].input, local.looked_up_registry)

  # Names, prefixes and ARNs are no secrets, even where they come from something that is marked as one, such as an SSM
  # parameter. Outputs made of them stay plain, and messages can name them.
  name         = nonsensitive(var.name)
  model_prefix = nonsensitive(var.model_prefix)

  # Names of endpoints, models and configurations hold 63 characters. A longer name keeps its beginning and gets a hash
  # of the whole, so that two long names that begin alike do not meet.
  endpoint_name = length(local.name) <= 63 ? local.name : "${substr(local.name, 0, 54)}-${substr(sha256(local.name), 0, 8)}"
  # Built here, and not read from the endpoint, so that policies are known at plan time. AWS writes it in lower case.
  sagemaker_arn = "arn:${local.partition}:sagemaker:${local.region}:${local.account_id}"
  endpoint_arn  = "${local.sagemaker_arn}:endpoint/${lower(local.endpoint_name)}"

  variants = var.create ? var.variants : {}

  given_images = {
    for key, variant in local.variants : key => nonsensitive(variant.image_uri != null ? variant.image_uri : var.image_uri)
  }
  huggingface_tags = {
    for key, variant in local.variants : key => join("-", concat(
      [var.huggingface.pytorch_version, "transformers${var.huggingface.transformers_version}"],
      can(regex(local.patterns.gpu_type, variant.instance_type))
      ? ["gpu", var.huggingface.python_version, var.huggingface.cuda_version]
      : ["cpu", var.huggingface.python_version],
      [var.huggingface.os_version],
    ))
  }
  image_uris = {
    for key, uri in local.given_images : key =>
    uri != null ? uri : "${local.registry}:${local.huggingface_tags[key]}"
  }

  # A null takes away what the module's own variables have of the name.
  environments = {
    for key, variant in local.variants : key => {
      for name, value in merge(var.environment, variant.environment) : name => value if value != null
    }
  }
  tags = { for key, value in var.tags : key => value if value != null }
  tag_keys = distinct(concat(
    try(keys(data.aws_default_tags.current[0].tags), []),
    [for key, value in var.tags : key if nonsensitive(value != null)],
  ))

  # AWS keeps weights in single precision: 0.1 would come back as 0.10000000149, a change in every plan. Whole numbers up
  # to 2^24 come back as they are. So weights are multiplied by the least power of ten, a million at most, that makes
  # them all whole, and larger ones are brought down to that bound. What has a weight keeps one.
  weight_scale = [
    for n in range(7) : pow(10, n)
    if n == 6 || alltrue([for variant in values(local.variants) : abs(variant.weight * pow(10, n) - floor(variant.weight * pow(10, n) + 0.5)) < 0.000001])
  ][0]
  scaled_weights = { for key, variant in local.variants : key => variant.weight * local.weight_scale }
  weight_bound   = min(1, pow(2, 24) / max(1, values(local.scaled_weights)...))
  weights = {
    for key, weight in local.scaled_weights : key => weight == 0 ? 0 : max(1, floor(weight * local.weight_bound + 0.5))
  }

  # Everything about a model that cannot be changed once it is there. Its name carries the hash of all of it: a change
  # makes a new name, so the new model is created before the old one goes, and no two of them collide. That also
  # replaces the model when the VPC changes, which provider 5 would plan as an update that AWS has no call for.
  model_inputs = {
    for key, variant in local.variants : key => {
      endpoint          = local.endpoint_name
      variant           = key
      revision          = var.revision
      image_uri         = local.image_uris[key]
      environment       = local.environments[key]
      model_data_url    = local.model_prefix_uri
      cache             = var.model_cache_enabled
      network_isolation = var.network_isolation
      vpc = var.vpc == null ? null : {
        subnet_ids         = sort(distinct(var.vpc.subnet_ids))
        security_group_ids = sort(distinct(var.vpc.security_group_ids))
      }
      role = local.role_identity
    }
  }
  # Forty bits of a hash give nothing away, so the name is not sensitive although an input may be.
  model_names = {
    for key, inputs in local.model_inputs : key =>
    "${substr("${local.endpoint_name}-${key}", 0, 52)}-${nonsensitive(substr(sha256(jsonencode(inputs)), 0, 10))}"
  }

  # The same for the endpoint configuration.
  configuration_inputs = {
    endpoint           = local.endpoint_name
    revision           = var.revision
    volume_kms_key_arn = var.volume_kms_key_arn
    data_capture       = var.data_capture == null ? null : merge(var.data_capture, { destination_uri = local.capture_uri })
    # autoscaling is no part of it, nor are an image and environment that the model's name stands for
    variants = {
      for key, variant in local.variants : key => merge(variant, {
        model       = local.model_names[key]
        weight      = local.weights[key]
        autoscaling = null
        image_uri   = null
        environment = null
      })
    }
  }
  configuration_name = "${substr(local.endpoint_name, 0, 52)}-${nonsensitive(substr(sha256(jsonencode(local.configuration_inputs)), 0, 10))}"

  # Here and wherever else something is read outside of resources: what was deleted by hand is missing in a plan with
  # -refresh-only, which has to say so and not end in an index that there is not.
  rollback_alarm_names = setunion(
    [for key, alarm in aws_cloudwatch_metric_alarm.this : alarm.alarm_name if contains(var.deployment.rollback_on, try(local.alarms[key].kind, ""))],
    var.deployment.rollback_alarm_names,
    aws_cloudwatch_metric_alarm.never[*].alarm_name,
  )
}

resource "aws_sagemaker_model" "this" {
  for_each = local.variants

  name                     = local.model_names[each.key]
  execution_role_arn       = local.role_arn
  enable_network_isolation = var.network_isolation

  primary_container {
    image          = local.image_uris[each.key]
    mode           = "MultiModel"
    model_data_url = local.model_prefix_uri
    environment    = local.model_inputs[each.key].environment

    multi_model_config {
      model_cache_setting = var.model_cache_enabled ? "Enabled" : "Disabled"
    }
  }

  dynamic "vpc_config" {
    for_each = var.vpc[*]

    content {
      subnets            = vpc_config.value.subnet_ids
      security_group_ids = vpc_config.value.security_group_ids
    }
  }

  tags = local.tags

  # SageMaker checks the role's rights and looks for the prefix when a model is created.
  depends_on = [
    aws_iam_role_policy.this,
    aws_iam_role_policy_attachment.this,
    aws_s3_bucket_policy.this,
    aws_s3_object.prefix,
  ]

  lifecycle {
    create_before_destroy = true

    precondition {
      condition     = can(regex("\\.dkr\\.ecr\\.${local.region}\\.", local.image_uris[each.key]))
      error_message = "The image of variant ${each.key}, ${local.image_uris[each.key]}, is not in ${local.region}. SageMaker pulls images from its own region only: replicate the repository there (ECR's replication does it), and give that image."
    }

    precondition {
      condition = try(
        length(setsubtract(data.aws_s3_objects.archives["now"].keys, [local.model_prefix])) > 0
        || length([for key in data.aws_s3_objects.archives["first"].keys : key if !endswith(key, "/")]) == 0,
        true
      )
      error_message = "No archive lies below ${local.model_prefix_uri}, where model_prefix has moved to: the endpoint would find none of the models that it serves. Archives do not move by themselves. Copy them first, as docs/module.md has it, or publish one there."
    }
  }
}

resource "aws_sagemaker_endpoint_configuration" "this" {
  count = var.create ? 1 : 0

  name        = local.configuration_name
  kms_key_arn = var.volume_kms_key_arn

  dynamic "production_variants" {
    for_each = local.variants
    iterator = variant

    content {
      variant_name           = variant.key
      model_name             = aws_sagemaker_model.this[variant.key].name
      instance_type          = variant.value.instance_type
      initial_instance_count = variant.value.instance_count
      initial_variant_weight = local.weights[variant.key]
      volume_size_in_gb      = variant.value.volume_size_gb
      enable_ssm_access      = variant.value.enable_ssm_access
      inference_ami_version  = variant.value.inference_ami_version

      model_data_download_timeout_in_seconds            = variant.value.download_timeout_seconds
      container_startup_health_check_timeout_in_seconds = variant.value.startup_timeout_seconds

      dynamic "routing_config" {
        for_each = variant.value.routing_strategy[*]

        content {
          routing_strategy = routing_config.value
        }
      }

      dynamic "core_dump_config" {
        for_each = variant.value.core_dump[*]

        content {
          destination_s3_uri = core_dump_config.value.destination_uri
          kms_key_id         = core_dump_config.value.kms_key_arn
        }
      }
    }
  }

  dynamic "data_capture_config" {
    for_each = var.data_capture[*]
    iterator = capture

    content {
      enable_capture              = true
      initial_sampling_percentage = capture.value.sampling_percentage
      destination_s3_uri          = local.capture_uri
      kms_key_id                  = capture.value.kms_key_arn

      dynamic "capture_options" {
        for_each = capture.value.modes

        content {
          capture_mode = capture_options.value
        }
      }

      dynamic "capture_content_type_header" {
        for_each = length(capture.value.json_content_types) > 0 ? [1] : []

        content {
          json_content_types = capture.value.json_content_types
        }
      }
    }
  }

  tags = local.tags

  lifecycle {
    create_before_destroy = true

    precondition {
      condition     = !anytrue([for uri in local.written_uris : startswith("${trimsuffix(uri, "/")}/", local.model_prefix_uri)])
      error_message = "Captured data or core dumps would go below the model prefix ${local.model_prefix_uri}, where every object can be called as a model. Choose another prefix: ${join(", ", local.written_uris)}."
    }

    precondition {
      condition     = alltrue([for arn in local.regional_keys : split(":", arn)[3] == local.region])
      error_message = "A KMS key of volume_kms_key_arn, bucket, data_capture or core_dump is not in ${local.region}: ${join(", ", [for arn in local.regional_keys : arn if split(":", arn)[3] != local.region])}. AWS encrypts with keys of the same region only; a multi-Region key has an ARN in each."
    }
  }
}

# The name is fixed, so never create_before_destroy here: a new configuration goes through as an update in place.
resource "aws_sagemaker_endpoint" "this" {
  count = var.create ? 1 : 0

  name                 = local.endpoint_name
  endpoint_config_name = aws_sagemaker_endpoint_configuration.this[0].name

  deployment_config {
    dynamic "blue_green_update_policy" {
      for_each = var.deployment.strategy != "ROLLING" ? [1] : []

      content {
        termination_wait_in_seconds          = var.deployment.termination_wait_seconds
        maximum_execution_timeout_in_seconds = var.deployment.timeout_seconds

        traffic_routing_configuration {
          type                     = var.deployment.strategy
          wait_interval_in_seconds = var.deployment.wait_seconds

          dynamic "canary_size" {
            for_each = var.deployment.strategy == "CANARY" ? [var.deployment.step] : []

            content {
              type  = canary_size.value.type
              value = canary_size.value.value
            }
          }

          dynamic "linear_step_size" {
            for_each = var.deployment.strategy == "LINEAR" ? [var.deployment.step] : []

            content {
              type  = linear_step_size.value.type
              value = linear_step_size.value.value
            }
          }
        }
      }
    }

    dynamic "rolling_update_policy" {
      for_each = var.deployment.strategy == "ROLLING" ? [1] : []

      content {
        wait_interval_in_seconds             = var.deployment.wait_seconds
        maximum_execution_timeout_in_seconds = var.deployment.timeout_seconds

        maximum_batch_size {
          type  = var.deployment.step.type
          value = var.deployment.step.value
        }

        dynamic "rollback_maximum_batch_size" {
          for_each = var.deployment.rollback_step[*]

          content {
            type  = rollback_maximum_batch_size.value.type
            value = rollback_maximum_batch_size.value.value
          }
        }
      }
    }

    # Added later, this block would replace the endpoint. So it is there from creation, whether an alarm is wanted or not.
    dynamic "auto_rollback_configuration" {
      for_each = var.deployment.rollback_enabled ? [1] : []

      content {
        dynamic "alarms" {
          for_each = local.rollback_alarm_names

          content {
            alarm_name = alarms.value
          }
        }
      }
    }
  }

  tags = local.tags

  # Otherwise the first container could create the group before Terraform does.
  depends_on = [aws_cloudwatch_log_group.this]
}

# AWS rolls a bad update back, and the provider takes the endpoint, in service again, for updated. What fails here keeps
# Terraform from deleting the configuration and the model that the endpoint went back to: they are let go only when
# everything that refers to the new configuration is done, and this does. It is no postcondition of the endpoint, whose
# `self` is an error where the endpoint could not be made.
resource "terraform_data" "in_use" {
  count = var.create ? 1 : 0

  input = aws_sagemaker_endpoint_configuration.this[0].name

  lifecycle {
    precondition {
      condition     = try(aws_sagemaker_endpoint.this[0].endpoint_config_name, local.configuration_name) == local.configuration_name
      error_message = "The endpoint ${local.endpoint_name} does not run the new configuration ${local.configuration_name}: it is back on ${try(aws_sagemaker_endpoint.this[0].endpoint_config_name, "none")}, since an alarm or a failed start rolled the update back. Callers are served by the old configuration. See why with `aws sagemaker describe-endpoint --endpoint-name ${local.endpoint_name}`, the alarms and the log group. Then correct the cause and apply again; or, to stay with the old settings, restore them here together with a new `revision`."
    }
  }
}
