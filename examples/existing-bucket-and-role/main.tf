# Region and credentials come from the environment.
provider "aws" {}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

# Stand-ins for what a platform team already has. In your own root these two are `data` sources, or plain names.
resource "aws_s3_bucket" "artifacts" {
  # checkov:skip=CKV_AWS_18:stands for a bucket whose settings are its owner's
  # checkov:skip=CKV_AWS_21:stands for a bucket whose settings are its owner's
  # checkov:skip=CKV_AWS_144:stands for a bucket whose settings are its owner's
  # checkov:skip=CKV_AWS_145:stands for a bucket whose settings are its owner's
  # checkov:skip=CKV2_AWS_61:stands for a bucket whose settings are its owner's
  # checkov:skip=CKV2_AWS_62:stands for a bucket whose settings are its owner's
  bucket        = "${var.name}-artifacts-${data.aws_caller_identity.current.account_id}"
  force_destroy = true # an example is there to be taken down again
}

resource "aws_s3_bucket_public_access_block" "artifacts" {
  bucket                  = aws_s3_bucket.artifacts.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_iam_role" "inference" {
  name               = "${var.name}-inference"
  assume_role_policy = data.aws_iam_policy_document.assume.json
}

data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["sagemaker.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.current.account_id]
    }
  }
}

# What an execution role needs: the archives under the prefix, the image, its log group, SageMaker's metrics.
data "aws_iam_policy_document" "inference" {
  # checkov:skip=CKV_AWS_356:logging in to ECR and putting metrics know no resource; the metrics are held to SageMaker's
  # checkov:skip=CKV_AWS_111:putting metrics knows no resource; it is held to SageMaker's namespaces
  statement {
    actions   = ["s3:GetObject"]
    resources = ["${aws_s3_bucket.artifacts.arn}/inference/models/*"]
  }

  statement {
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.artifacts.arn]

    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["inference/models/*"]
    }
  }

  statement {
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"]
  }

  statement {
    actions   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    resources = ["arn:${data.aws_partition.current.partition}:ecr:*:*:repository/huggingface-pytorch-inference"]
  }

  statement {
    actions = ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
    resources = [
      "arn:${data.aws_partition.current.partition}:logs:*:${data.aws_caller_identity.current.account_id}:log-group:/aws/sagemaker/Endpoints/${var.name}",
      "arn:${data.aws_partition.current.partition}:logs:*:${data.aws_caller_identity.current.account_id}:log-group:/aws/sagemaker/Endpoints/${var.name}:*",
    ]
  }

  statement {
    actions   = ["cloudwatch:PutMetricData"]
    resources = ["*"]

    condition {
      test     = "StringLike"
      variable = "cloudwatch:namespace"
      values   = ["AWS/SageMaker*", "/aws/sagemaker/*", "aws/sagemaker/*"]
    }
  }
}

resource "aws_iam_role_policy" "inference" {
  name   = "inference"
  role   = aws_iam_role.inference.name
  policy = data.aws_iam_policy_document.inference.json
}

module "endpoint" {
  source = "../.."

  name         = var.name
  environment  = var.environment
  model_prefix = "inference/models/"

  bucket = {
    create = false
    name   = aws_s3_bucket.artifacts.bucket
    # The bucket is new here and holds nothing yet, which SageMaker would refuse. One with archives needs no marker.
    prefix_marker = true
  }

  role = {
    create = false
    # By way of the policy, and not of the role, so that SageMaker finds the policy in place.
    arn = "arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:role/${aws_iam_role_policy.inference.role}"
  }
}
