# What others may do: call models, publish them, live with the endpoint. The module creates two kinds of these policies
# where it is asked to; the others are outputs to attach where they are needed.

# Calling models

data "aws_iam_policy_document" "invoke" {
  count = var.create ? 1 : 0

  statement {
    sid       = "InvokeEveryModel"
    actions   = ["sagemaker:InvokeEndpoint"]
    resources = [local.endpoint_arn]
  }
}

data "aws_iam_policy_document" "invoke_targets" {
  for_each = var.create ? var.invoke_policies : {}

  statement {
    sid       = "InvokeTheseModels"
    actions   = ["sagemaker:InvokeEndpoint"]
    resources = [local.endpoint_arn]

    condition {
      test     = "StringLike"
      variable = "sagemaker:TargetModel"
      values   = nonsensitive(each.value)
    }
  }
}

resource "aws_iam_policy" "invoke" {
  for_each = var.create ? var.invoke_policies : {}

  name        = "${local.policy_prefix}-invoke-${each.key}"
  path        = local.policy_path
  description = "Calls to some of the models on the SageMaker endpoint ${local.endpoint_name}"
  policy      = data.aws_iam_policy_document.invoke_targets[each.key].json

  tags = local.tags

  lifecycle {
    precondition {
      condition     = length(jsonencode(jsondecode(data.aws_iam_policy_document.invoke_targets[each.key].json))) <= 6144
      error_message = "The invoke policy ${each.key} has ${length(jsonencode(jsondecode(data.aws_iam_policy_document.invoke_targets[each.key].json)))} characters; IAM takes 6144 in a policy. Use patterns that match more (\"${each.key}/*\"), or split it into several policies."
    }
  }
}

# Finding out which target a name means, as mme.client does before it calls. The names of configurations and models are
# those that main.tf gives: the endpoint's, and a hash of ten digits.
data "aws_iam_policy_document" "lookup" {
  count = var.create ? 1 : 0

  statement {
    sid       = "DescribeEndpoint"
    actions   = ["sagemaker:DescribeEndpoint"]
    resources = [local.endpoint_arn]
  }

  statement {
    sid       = "DescribeConfiguration"
    actions   = ["sagemaker:DescribeEndpointConfig"]
    resources = ["${local.sagemaker_arn}:endpoint-config/${lower(substr(local.endpoint_name, 0, 52))}-??????????"]
  }

  statement {
    sid       = "DescribeModels"
    actions   = ["sagemaker:DescribeModel"]
    resources = ["${local.sagemaker_arn}:model/${lower(substr("${local.endpoint_name}-", 0, 52))}*-??????????"]
  }

  statement {
    sid       = "ListModelsAndChannels"
    actions   = ["s3:ListBucket"]
    resources = [local.bucket_arn]

    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["${local.model_prefix}*", "${local.channel_prefix}*"]
    }
  }

  statement {
    sid       = "ReadChannels"
    actions   = ["s3:GetObject"]
    resources = ["${local.bucket_arn}/${local.channel_prefix}*"]
  }

  dynamic "statement" {
    for_each = length(local.bucket_keys) > 0 ? [local.bucket_keys] : []

    content {
      sid       = "ReadWithBucketKeys"
      actions   = ["kms:Decrypt"]
      resources = statement.value

      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = ["s3.${local.region}.${local.dns_suffix}"]
      }
    }
  }
}

data "aws_iam_policy_document" "client" {
  count = var.create ? 1 : 0

  source_policy_documents = [
    data.aws_iam_policy_document.lookup[0].json,
    data.aws_iam_policy_document.invoke[0].json,
  ]
}

# Publishing models

data "aws_iam_policy_document" "publisher" {
  count = var.create ? 1 : 0

  statement {
    sid       = "ListModelsAndChannels"
    actions   = ["s3:ListBucket"]
    resources = [local.bucket_arn]

    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["${local.model_prefix}*", "${local.channel_prefix}*"]
    }
  }

  statement {
    sid       = "ReadModelsAndChannels"
    actions   = ["s3:GetObject"]
    resources = ["${local.bucket_arn}/${local.model_prefix}*", "${local.bucket_arn}/${local.channel_prefix}*"]
  }

  statement {
    sid       = "PutNewArchives"
    actions   = ["s3:PutObject"]
    resources = [local.archive_arns]

    condition {
      test     = "Null"
      variable = "s3:if-none-match"
      values   = ["false"]
    }
  }

  statement {
    sid       = "UploadParts"
    actions   = ["s3:PutObject"]
    resources = [local.archive_arns]

    # Starting a multipart upload and sending its parts carry no condition; completing it creates the object and does.
    condition {
      test     = "Bool"
      variable = "s3:ObjectCreationOperation"
      values   = ["false"]
    }
  }

  # Finds an unfinished upload, to go on with it. S3 knows no condition on the prefix for this call.
  statement {
    sid       = "FindUnfinishedUploads"
    actions   = ["s3:ListBucketMultipartUploads"]
    resources = [local.bucket_arn]
  }

  statement {
    sid       = "GoOnWithUploads"
    actions   = ["s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    resources = [local.archive_arns]
  }

  statement {
    sid       = "MoveChannels"
    actions   = ["s3:PutObject"]
    resources = ["${local.bucket_arn}/${local.channel_prefix}*.json"]
  }

  statement {
    sid       = "PutPlans"
    actions   = ["s3:PutObject"]
    resources = ["${local.bucket_arn}/${local.plan_prefix}*.json"]
  }

  # Whatever else its bearer may do, archives stay as they are.
  statement {
    sid       = "NeverReplaceArchives"
    effect    = "Deny"
    actions   = ["s3:PutObject"]
    resources = [local.archive_arns]

    condition {
      test     = "Null"
      variable = "s3:if-none-match"
      values   = ["true"]
    }

    condition {
      test     = "Bool"
      variable = "s3:ObjectCreationOperation"
      values   = ["true"]
    }
  }

  statement {
    sid       = "NeverDeleteArchives"
    effect    = "Deny"
    actions   = ["s3:DeleteObject", "s3:DeleteObjectVersion"]
    resources = ["${local.bucket_arn}/${local.model_prefix}*"]
  }

  dynamic "statement" {
    for_each = length(local.bucket_keys) > 0 ? [local.bucket_keys] : []

    content {
      sid       = "ReadWithBucketKeys"
      actions   = ["kms:Decrypt"]
      resources = statement.value

      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = ["s3.${local.region}.${local.dns_suffix}"]
      }
    }
  }

  dynamic "statement" {
    for_each = var.bucket.kms_key_arn[*]

    content {
      sid       = "UseBucketKey"
      actions   = ["kms:GenerateDataKey"]
      resources = [nonsensitive(statement.value)]

      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = ["s3.${local.region}.${local.dns_suffix}"]
      }
    }
  }
}

resource "aws_iam_policy" "publisher" {
  count = var.create && var.create_publisher_policy ? 1 : 0

  name        = "${local.policy_prefix}-publish"
  path        = local.policy_path
  description = "Publishing models for the SageMaker endpoint ${local.endpoint_name}"
  policy      = data.aws_iam_policy_document.publisher[0].json

  tags = local.tags

  lifecycle {
    precondition {
      condition     = length(jsonencode(jsondecode(data.aws_iam_policy_document.publisher[0].json))) <= 6144
      error_message = "The publisher's policy has ${length(jsonencode(jsondecode(data.aws_iam_policy_document.publisher[0].json)))} characters; IAM takes 6144 in a policy. Choose a shorter model_prefix, or name fewer keys in bucket.former_kms_key_arns; or put the output publisher_policy_json into a role, which takes 10240."
    }
  }
}

# Living with the endpoint: what status, doctor, logs, warm, dashboard, the channels' tasks, delete, prune and capacity call.
data "aws_iam_policy_document" "operator" {
  # checkov:skip=CKV_AWS_356:DescribeAlarms tells of composite alarms only where it is allowed on all; the other actions know no resource
  count = var.create ? 1 : 0

  source_policy_documents = [data.aws_iam_policy_document.client[0].json]

  statement {
    sid = "ReadMetricsAndScaling"
    actions = [
      "application-autoscaling:DescribeScalableTargets",
      "application-autoscaling:DescribeScalingPolicies",
      "application-autoscaling:DescribeScheduledActions",
      "cloudwatch:DescribeAlarms",
      "cloudwatch:GetMetricData",
      "servicequotas:ListServiceQuotas",
    ]
    resources = ["*"] # see above
  }

  statement {
    sid     = "ReadLogs"
    actions = ["logs:FilterLogEvents"]
    resources = [
      "arn:${local.partition}:logs:${local.region}:${local.account_id}:log-group:${local.log_group_name}",
      "arn:${local.partition}:logs:${local.region}:${local.account_id}:log-group:${local.log_group_name}:*",
    ]
  }

  statement {
    sid = "ReadBucketSettings"
    actions = [
      "s3:GetBucketPolicy",
      "s3:GetEncryptionConfiguration",
      "s3:ListBucketMultipartUploads",
    ]
    resources = [local.bucket_arn]
  }

  statement {
    sid       = "ReadModels"
    actions   = ["s3:GetObject"]
    resources = ["${local.bucket_arn}/${local.model_prefix}*"]
  }

  statement {
    sid       = "RemoveModels"
    actions   = ["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:ListMultipartUploadParts"]
    resources = [local.archive_arns]
  }

  statement {
    sid       = "MoveChannels"
    actions   = ["s3:DeleteObject", "s3:PutObject"]
    resources = ["${local.bucket_arn}/${local.channel_prefix}*.json"]
  }

  statement {
    sid       = "ListPlans"
    actions   = ["s3:ListBucket"]
    resources = [local.bucket_arn]

    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["${local.plan_prefix}*"]
    }
  }

  statement {
    sid       = "KeepPlans"
    actions   = ["s3:DeleteObject", "s3:GetObject", "s3:PutObject"]
    resources = ["${local.bucket_arn}/${local.plan_prefix}*.json"]
  }

  statement {
    sid = "ReadRole"
    actions = [
      "iam:GetRole",
      "iam:GetRolePolicy",
      "iam:ListAttachedRolePolicies",
      "iam:ListRolePolicies",
      "iam:SimulatePrincipalPolicy",
    ]
    resources = [local.role_resource]
  }

  statement {
    sid       = "ReadImages"
    actions   = ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    resources = local.ecr_repository_arns
  }

  dynamic "statement" {
    for_each = var.bucket.kms_key_arn[*]

    content {
      sid       = "UseBucketKey"
      actions   = ["kms:GenerateDataKey"]
      resources = [nonsensitive(statement.value)]

      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = ["s3.${local.region}.${local.dns_suffix}"]
      }
    }
  }
}
