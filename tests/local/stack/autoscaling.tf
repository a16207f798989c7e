resource "aws_appautoscaling_target" "this" {
  for_each           = var.variants
  service_namespace  = "sagemaker"
  resource_id        = "endpoint/${aws_sagemaker_endpoint.this.name}/variant/${each.key}"
  scalable_dimension = "sagemaker:variant:DesiredInstanceCount"
  min_capacity       = 1
  max_capacity       = 4

  lifecycle {
    replace_triggered_by = [aws_sagemaker_endpoint_configuration.this.id]
  }
}

resource "aws_appautoscaling_policy" "invocations" {
  for_each           = aws_appautoscaling_target.this
  name               = "invocations"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = each.value.service_namespace
  resource_id        = each.value.resource_id
  scalable_dimension = each.value.scalable_dimension

  target_tracking_scaling_policy_configuration {
    target_value       = 70
    scale_in_cooldown  = 600
    scale_out_cooldown = 300
    predefined_metric_specification {
      predefined_metric_type = "SageMakerVariantInvocationsPerInstance"
    }
  }
}

resource "aws_appautoscaling_policy" "memory" {
  for_each           = aws_appautoscaling_target.this
  name               = "memory"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = each.value.service_namespace
  resource_id        = each.value.resource_id
  scalable_dimension = each.value.scalable_dimension

  target_tracking_scaling_policy_configuration {
    target_value = 80
    customized_metric_specification {
      metric_name = "MemoryUtilization"
      namespace   = "/aws/sagemaker/Endpoints"
      statistic   = "Average"
      dimensions {
        name  = "EndpointName"
        value = aws_sagemaker_endpoint.this.name
      }
      dimensions {
        name  = "VariantName"
        value = each.key
      }
    }
  }
}

resource "aws_appautoscaling_scheduled_action" "this" {
  for_each           = aws_appautoscaling_target.this
  name               = "${var.name}-${each.key}-morning"
  service_namespace  = each.value.service_namespace
  resource_id        = each.value.resource_id
  scalable_dimension = each.value.scalable_dimension
  schedule           = "cron(0 7 * * ? *)"
  timezone           = "Europe/Vienna"

  scalable_target_action {
    min_capacity = 2
    max_capacity = 4
  }
}
