resource "aws_cloudwatch_metric_alarm" "errors" {
  alarm_name          = "${var.name}-5xx"
  comparison_operator = "GreaterThanThreshold"
  evaluation_periods  = 3
  datapoints_to_alarm = 2
  threshold           = 0
  namespace           = "AWS/SageMaker"
  metric_name         = "Invocation5XXErrors"
  statistic           = "Sum"
  period              = 60
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.this.arn]
  dimensions          = { EndpointName = var.name }
}

resource "aws_cloudwatch_metric_alarm" "latency" {
  alarm_name          = "${var.name}-latency"
  comparison_operator = "GreaterThanThreshold"
  evaluation_periods  = 3
  threshold           = 1000000
  namespace           = "AWS/SageMaker"
  metric_name         = "ModelLatency"
  extended_statistic  = "p99"
  period              = 60
  dimensions          = { EndpointName = var.name }
}

resource "aws_cloudwatch_metric_alarm" "cache" {
  alarm_name          = "${var.name}-cache"
  comparison_operator = "LessThanThreshold"
  evaluation_periods  = 1
  threshold           = 0.5
  alarm_description   = "share of requests that find their model loaded"

  metric_query {
    id          = "ratio"
    expression  = "FILL(hits, 1)"
    label       = "hit ratio"
    return_data = true
  }
  metric_query {
    id = "hits"
    metric {
      namespace   = "AWS/SageMaker"
      metric_name = "ModelCacheHit"
      stat        = "Average"
      period      = 300
      dimensions  = { EndpointName = var.name, VariantName = "blue" }
    }
  }
}

resource "aws_cloudwatch_composite_alarm" "this" {
  alarm_name = "${var.name}-any"
  alarm_rule = "ALARM(${aws_cloudwatch_metric_alarm.errors.alarm_name}) OR ALARM(${aws_cloudwatch_metric_alarm.latency.alarm_name})"
}

resource "aws_cloudwatch_dashboard" "this" {
  dashboard_name = var.name
  dashboard_body = jsonencode({
    widgets = [{
      type   = "metric"
      x      = 0
      y      = 0
      width  = 12
      height = 6
      properties = {
        region  = data.aws_region.current.id
        metrics = [["AWS/SageMaker", "Invocations", "EndpointName", var.name]]
      }
    }]
  })
}
