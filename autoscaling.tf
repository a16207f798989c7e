locals {
  autoscaling = { for key, variant in local.variants : key => variant.autoscaling if nonsensitive(variant.autoscaling != null) }

  scaling_policies = merge([
    for key, scaling in local.autoscaling : {
      for metric, target in {
        invocations = scaling.invocations_per_instance
        cpu         = scaling.cpu_utilization
        memory      = scaling.memory_utilization
      } : "${key}/target/${metric}" => { variant = key, metric = metric, target = target, scaling = scaling } if nonsensitive(target != null)
    }
  ]...)

  schedules = merge([
    for key, scaling in local.autoscaling : {
      for name, schedule in scaling.schedules : "${key}/schedule/${name}" => merge(schedule, { variant = key, name = name })
    }
  ]...)
}

# Remembers each variant's instance type, once for everything that must go when it changes. AWS refuses the change while
# the variant is registered for autoscaling, so it replaces the target: deregister, update the endpoint, register again,
# in one apply. Deregistering deletes the target's policies and schedules, so they are made again with it.
resource "terraform_data" "instance_type" {
  for_each = merge(
    { for key in keys(local.autoscaling) : key => key },
    { for key, policy in local.scaling_policies : key => policy.variant },
    { for key, schedule in local.schedules : key => schedule.variant },
  )

  input = local.variants[each.value].instance_type
}

resource "aws_appautoscaling_target" "this" {
  for_each = local.autoscaling

  service_namespace  = "sagemaker"
  scalable_dimension = "sagemaker:variant:DesiredInstanceCount"
  resource_id        = "endpoint/${aws_sagemaker_endpoint.this[0].name}/variant/${each.key}"
  min_capacity       = each.value.min_capacity
  max_capacity       = each.value.max_capacity

  tags = local.tags

  lifecycle {
    replace_triggered_by = [
      terraform_data.instance_type[each.key],
      aws_sagemaker_endpoint.this[0].id,
    ]
  }
}

resource "aws_appautoscaling_policy" "this" {
  for_each = local.scaling_policies

  name               = each.value.metric
  policy_type        = "TargetTrackingScaling"
  service_namespace  = aws_appautoscaling_target.this[each.value.variant].service_namespace
  scalable_dimension = aws_appautoscaling_target.this[each.value.variant].scalable_dimension
  resource_id        = aws_appautoscaling_target.this[each.value.variant].resource_id

  target_tracking_scaling_policy_configuration {
    target_value       = each.value.target
    scale_in_cooldown  = each.value.scaling.scale_in_cooldown_seconds
    scale_out_cooldown = each.value.scaling.scale_out_cooldown_seconds
    disable_scale_in   = !each.value.scaling.scale_in_enabled

    dynamic "predefined_metric_specification" {
      for_each = each.value.metric == "invocations" ? [1] : []

      content {
        predefined_metric_type = "SageMakerVariantInvocationsPerInstance"
      }
    }

    dynamic "customized_metric_specification" {
      for_each = each.value.metric == "invocations" ? [] : [1]

      content {
        namespace   = "/aws/sagemaker/Endpoints"
        metric_name = each.value.metric == "cpu" ? "CPUUtilization" : "MemoryUtilization"
        statistic   = "Average"

        dimensions {
          name  = "EndpointName"
          value = local.endpoint_name
        }

        dimensions {
          name  = "VariantName"
          value = each.value.variant
        }
      }
    }
  }

  lifecycle {
    replace_triggered_by = [
      terraform_data.instance_type[each.key],
      aws_sagemaker_endpoint.this[0].id,
    ]
  }
}

resource "aws_appautoscaling_scheduled_action" "this" {
  for_each = local.schedules

  name               = each.value.name
  service_namespace  = aws_appautoscaling_target.this[each.value.variant].service_namespace
  scalable_dimension = aws_appautoscaling_target.this[each.value.variant].scalable_dimension
  resource_id        = aws_appautoscaling_target.this[each.value.variant].resource_id
  schedule           = each.value.schedule
  timezone           = each.value.timezone
  start_time         = each.value.start_time
  end_time           = each.value.end_time

  scalable_target_action {
    min_capacity = each.value.min_capacity
    max_capacity = each.value.max_capacity
  }

  lifecycle {
    replace_triggered_by = [
      terraform_data.instance_type[each.key],
      aws_sagemaker_endpoint.this[0].id,
    ]
  }
}
