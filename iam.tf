locals {
  create_role = var.create && var.role.create

  # Roles are global, so the name holds the region; its hash holds whatever replaces the role.
  role_name = nonsensitive(coalesce(
    var.role.name,
    "${substr(local.name, 0, 64 - 20 - length(local.region))}-${local.region}-${substr(sha256("${local.name}${var.role.path}"), 0, 8)}-sagemaker",
  ))
  role_arn = local.create_role ? one(aws_iam_role.this[*].arn) : nonsensitive(var.role.arn)
  # The same ARN, known at plan time.
  role_resource = var.role.create ? "arn:${local.partition}:iam::${local.account_id}:role${nonsensitive(var.role.path)}${local.role_name}" : local.role_arn
  # Tells one role from another and, unlike a new role's ARN, is known at plan time.
  role_identity = nonsensitive(var.role.create ? "${var.role.path}${local.role_name}" : var.role.arn)

  ecr_images = [
    for uri in values(local.image_uris) :
    regex("^(?P<account>[0-9]{12})\\.dkr\\.ecr\\.(?P<region>[a-z0-9-]+)\\.[a-z0-9.-]+/(?P<repository>[^:@]+)", uri)
  ]
  ecr_repository_arns = distinct([
    for image in local.ecr_images : "arn:${local.partition}:ecr:${image.region}:${image.account}:repository/${image.repository}"
  ])

  bucket_keys = distinct([for arn in concat(var.bucket.kms_key_arn[*], var.bucket.former_kms_key_arns) : nonsensitive(arn)])

  # What the instances write: captured data, and the memory of containers that crash.
  core_dumps     = { for key, variant in local.variants : key => variant.core_dump if nonsensitive(variant.core_dump != null) }
  core_dump_keys = distinct(flatten([for dump in values(local.core_dumps) : dump.kms_key_arn[*]]))
  written_uris   = distinct([for uri in concat([for capture in var.data_capture[*] : local.capture_uri], values(local.core_dumps)[*].destination_uri) : nonsensitive(uri)])
  arn_of_uri     = { for uri in local.written_uris : uri => "arn:${local.partition}:s3:::${trimsuffix(trimprefix(uri, "s3://"), "/")}" }
  regional_keys = nonsensitive(flatten([
    for arn in [var.volume_kms_key_arn, local.bucket_keys, try(var.data_capture.kms_key_arn, null), local.core_dump_keys] : nonsensitive(arn)[*]
  ]))

  ec2_arn        = "arn:${local.partition}:ec2:${local.region}:${local.account_id}"
  log_group_name = "/aws/sagemaker/Endpoints/${local.endpoint_name}"

  policy_path = var.role.create ? nonsensitive(var.role.path) : "/"
  # Policies are global as well.
  policy_prefix = "${local.endpoint_name}-${local.region}"
}

data "aws_iam_policy_document" "assume_role" {
  count = local.create_role ? 1 : 0

  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["sagemaker.amazonaws.com"]
    }

    # SageMaker acting for another account cannot borrow the role.
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account_id]
    }
  }
}

data "aws_iam_policy_document" "execution" {
  count = local.create_role ? 1 : 0

  source_policy_documents = compact([var.role.policy_json])

  statement {
    sid       = "ReadModels"
    actions   = ["s3:GetObject"]
    resources = ["${local.bucket_arn}/${local.model_prefix}*"]
  }

  statement {
    sid       = "ListModels"
    actions   = ["s3:ListBucket"]
    resources = [local.bucket_arn]

    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["${local.model_prefix}*"]
    }
  }

  # Archives stay encrypted with the key that the bucket had when they came, so former keys are needed as well.
  dynamic "statement" {
    for_each = length(local.bucket_keys) > 0 ? [local.bucket_keys] : []

    content {
      sid       = "DecryptModels"
      actions   = ["kms:Decrypt"]
      resources = statement.value

      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = ["s3.${local.region}.${local.dns_suffix}"]
      }
    }
  }

  statement {
    sid       = "LogInToRegistry"
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"] # the action knows no resource
  }

  statement {
    sid = "PullImages"
    actions = [
      "ecr:BatchCheckLayerAvailability",
      "ecr:BatchGetImage",
      "ecr:GetDownloadUrlForLayer",
    ]
    resources = local.ecr_repository_arns
  }

  statement {
    sid = "WriteLogs"
    actions = [
      "logs:CreateLogGroup",
      "logs:CreateLogStream",
      "logs:DescribeLogStreams",
      "logs:PutLogEvents",
    ]
    resources = [
      "arn:${local.partition}:logs:${local.region}:${local.account_id}:log-group:${local.log_group_name}",
      "arn:${local.partition}:logs:${local.region}:${local.account_id}:log-group:${local.log_group_name}:*",
    ]
  }

  statement {
    sid       = "PutMetrics"
    actions   = ["cloudwatch:PutMetricData"]
    resources = ["*"] # the action knows no resource; the condition leaves SageMaker's own namespaces

    condition {
      test     = "StringLike"
      variable = "cloudwatch:namespace"
      values   = ["AWS/SageMaker*", "/aws/sagemaker/*", "aws/sagemaker/*"]
    }
  }

  dynamic "statement" {
    for_each = var.volume_kms_key_arn[*]

    content {
      sid       = "DescribeVolumeKey"
      actions   = ["kms:DescribeKey"]
      resources = [statement.value]
    }
  }

  dynamic "statement" {
    for_each = var.volume_kms_key_arn[*]

    content {
      sid       = "EncryptVolumes"
      actions   = ["kms:CreateGrant"]
      resources = [statement.value]

      condition {
        test     = "Bool"
        variable = "kms:GrantIsForAWSResource"
        values   = ["true"]
      }
    }
  }

  dynamic "statement" {
    for_each = var.data_capture[*]

    content {
      sid       = "CaptureData"
      actions   = ["s3:PutObject"]
      resources = ["${local.arn_of_uri[local.capture_uri]}/*"]
    }
  }

  dynamic "statement" {
    for_each = try(var.data_capture.kms_key_arn, null)[*]

    content {
      sid       = "EncryptCapturedData"
      actions   = ["kms:GenerateDataKey"]
      resources = [statement.value]

      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = ["s3.${local.region}.${local.dns_suffix}"]
      }
    }
  }

  dynamic "statement" {
    for_each = length(local.core_dumps) > 0 ? [local.core_dumps] : []

    content {
      sid       = "DumpCores"
      actions   = ["s3:PutObject"]
      resources = distinct([for dump in values(statement.value) : "${local.arn_of_uri[dump.destination_uri]}/*"])
    }
  }

  # A dump is as large as a container's memory, so it comes in parts, for which S3 asks for both.
  dynamic "statement" {
    for_each = length(local.core_dump_keys) > 0 ? [local.core_dump_keys] : []

    content {
      sid       = "EncryptCoreDumps"
      actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
      resources = statement.value

      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = ["s3.${local.region}.${local.dns_suffix}"]
      }
    }
  }

  # Whatever the instances write into the archives' bucket without a key of its own is encrypted with the bucket's.
  dynamic "statement" {
    for_each = anytrue([for uri in local.written_uris : startswith(uri, "s3://${local.bucket_name}/") || uri == "s3://${local.bucket_name}"]) ? var.bucket.kms_key_arn[*] : []

    content {
      sid       = "EncryptIntoBucket"
      actions   = ["kms:GenerateDataKey"]
      resources = [nonsensitive(statement.value)]

      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = ["s3.${local.region}.${local.dns_suffix}"]
      }
    }
  }

  dynamic "statement" {
    for_each = var.vpc[*]

    content {
      sid = "DescribeNetwork"
      actions = [
        "ec2:DescribeDhcpOptions",
        "ec2:DescribeNetworkInterfaces",
        "ec2:DescribeSecurityGroups",
        "ec2:DescribeSubnets",
        "ec2:DescribeVpcs",
      ]
      resources = ["*"] # EC2's Describe actions know no resource
    }
  }

  dynamic "statement" {
    for_each = var.vpc[*]

    content {
      sid     = "CreateNetworkInterfaces"
      actions = ["ec2:CreateNetworkInterface"]
      resources = concat(
        [for id in statement.value.subnet_ids : "${local.ec2_arn}:subnet/${id}"],
        [for id in statement.value.security_group_ids : "${local.ec2_arn}:security-group/${id}"],
        ["${local.ec2_arn}:network-interface/*"],
      )
    }
  }

  dynamic "statement" {
    for_each = var.vpc[*]

    content {
      sid = "HandOverNetworkInterfaces"
      actions = [
        "ec2:CreateNetworkInterfacePermission",
        "ec2:DeleteNetworkInterface",
        "ec2:DeleteNetworkInterfacePermission",
      ]
      resources = ["${local.ec2_arn}:network-interface/*"]

      # The interfaces' names are not known beforehand; the subnets are.
      condition {
        test     = "ArnEquals"
        variable = "ec2:Subnet"
        values   = [for id in statement.value.subnet_ids : "${local.ec2_arn}:subnet/${id}"]
      }
    }
  }
}

resource "aws_iam_role" "this" {
  count = local.create_role ? 1 : 0

  name                 = local.role_name
  path                 = var.role.path
  description          = "Execution role of the SageMaker endpoint ${local.endpoint_name}"
  assume_role_policy   = data.aws_iam_policy_document.assume_role[0].json
  permissions_boundary = var.role.permissions_boundary_arn

  tags = local.tags

  lifecycle {
    precondition {
      condition     = var.role.name == null || try(terraform_data.role_path[0].output, var.role.path) == var.role.path
      error_message = "role.path changes while role.name stays \"${local.role_name}\". AWS can only make a new role for that, and it knows one role of a name, whatever the path. Choose a new role.name together with the new path."
    }
  }
}

# Remembers the path that a role of a given name was made with.
resource "terraform_data" "role_path" {
  count = local.create_role ? 1 : 0

  input            = var.role.path
  triggers_replace = local.role_name

  lifecycle {
    ignore_changes = [input]
  }
}

resource "aws_iam_role_policy" "this" {
  count = local.create_role ? 1 : 0

  name   = "sagemaker-endpoint"
  role   = aws_iam_role.this[0].name
  policy = data.aws_iam_policy_document.execution[0].json

  lifecycle {
    precondition {
      condition     = length(jsonencode(jsondecode(data.aws_iam_policy_document.execution[0].json))) <= 10240
      error_message = "The execution role's policy has ${length(jsonencode(jsondecode(data.aws_iam_policy_document.execution[0].json)))} characters; IAM takes 10240 in a role. Move statements from role.policy_json into a policy of its own, and attach it with role.policy_arns."
    }
  }
}

resource "aws_iam_role_policy_attachment" "this" {
  for_each = local.create_role ? var.role.policy_arns : {}

  role       = aws_iam_role.this[0].name
  policy_arn = each.value
}
