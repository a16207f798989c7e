# Region and credentials come from the environment.
provider "aws" {}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

data "aws_availability_zones" "available" {
  # checkov:skip=CKV_AWS_394:the example takes any two zones of whatever region it is applied in
  state = "available"
}

# Two private subnets without a way to the internet. S3 is reached through the gateway endpoint.
resource "aws_vpc" "this" {
  # checkov:skip=CKV2_AWS_11:an example's traffic needs no flow logs
  # checkov:skip=CKV2_AWS_12:nothing uses the default security group
  cidr_block           = "10.20.0.0/16"
  enable_dns_hostnames = true

  tags = { Name = var.name }
}

resource "aws_subnet" "private" {
  count = 2

  vpc_id            = aws_vpc.this.id
  availability_zone = data.aws_availability_zones.available.names[count.index]
  cidr_block        = cidrsubnet(aws_vpc.this.cidr_block, 8, count.index)

  tags = { Name = "${var.name}-${count.index}" }
}

resource "aws_route_table" "private" {
  vpc_id = aws_vpc.this.id

  tags = { Name = var.name }
}

resource "aws_route_table_association" "private" {
  count = 2

  subnet_id      = aws_subnet.private[count.index].id
  route_table_id = aws_route_table.private.id
}

resource "aws_vpc_endpoint" "s3" {
  vpc_id          = aws_vpc.this.id
  service_name    = "com.amazonaws.${data.aws_region.current.id}.s3"
  route_table_ids = [aws_route_table.private.id]
}

data "aws_ec2_managed_prefix_list" "s3" {
  name = "com.amazonaws.${data.aws_region.current.id}.s3"
}

resource "aws_security_group" "endpoint" {
  # checkov:skip=CKV2_AWS_5:the module hands it to SageMaker, which attaches it
  name        = "${var.name}-instances"
  description = "Instances of the SageMaker endpoint: to S3 alone"
  vpc_id      = aws_vpc.this.id
}

# Archives, through the gateway endpoint.
resource "aws_vpc_security_group_egress_rule" "s3" {
  # checkov:skip=CKV_AWS_23:the comment above says it
  security_group_id = aws_security_group.endpoint.id
  prefix_list_id    = data.aws_ec2_managed_prefix_list.s3.id
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

# One key for archives, volumes and logs. IAM policies in this account decide who uses it, which is how the module's
# role gets its part.
resource "aws_kms_key" "this" {
  description             = "SageMaker endpoint ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 7
  policy                  = data.aws_iam_policy_document.key.json
}

data "aws_iam_policy_document" "key" {
  # checkov:skip=CKV_AWS_109:a key's policy speaks of that key alone; this is AWS's own default for it
  # checkov:skip=CKV_AWS_111:a key's policy speaks of that key alone; this is AWS's own default for it
  # checkov:skip=CKV_AWS_356:a key's policy speaks of that key alone; this is AWS's own default for it
  statement {
    sid       = "LetIamDecide"
    actions   = ["kms:*"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:root"]
    }
  }

  statement {
    sid       = "EncryptLogs"
    actions   = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*"]
    resources = ["*"]

    principals {
      type        = "Service"
      identifiers = ["logs.${data.aws_region.current.id}.amazonaws.com"]
    }

    condition {
      test     = "ArnLike"
      variable = "kms:EncryptionContext:aws:logs:arn"
      values   = ["arn:${data.aws_partition.current.partition}:logs:${data.aws_region.current.id}:${data.aws_caller_identity.current.account_id}:log-group:/aws/sagemaker/Endpoints/${var.name}"]
    }
  }
}

module "endpoint" {
  source = "../.."

  name = var.name

  vpc = {
    subnet_ids         = aws_subnet.private[*].id
    security_group_ids = concat([aws_security_group.endpoint.id], var.more_security_group_ids)
  }

  volume_kms_key_arn = aws_kms_key.this.arn

  bucket = {
    kms_key_arn = aws_kms_key.this.arn
    # An example is there to be taken down again.
    force_destroy                      = true
    noncurrent_version_expiration_days = 0
    abort_incomplete_upload_days       = 0
  }

  logs = { kms_key_arn = aws_kms_key.this.arn }
}
