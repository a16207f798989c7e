# Region and credentials come from the environment.
provider "aws" {}

# Every tenant's archives lie in a folder of its own under the prefix, so its target models begin with its name.
module "endpoint" {
  source = "../.."

  name = var.name

  invoke_policies         = { for tenant in var.tenants : tenant => ["${tenant}/*", "shared/*"] }
  create_publisher_policy = true

  bucket = {
    # With many hands in one bucket, archives must stay what they were when they were tested.
    deny_overwrite = true
    # An example is there to be taken down again.
    force_destroy                      = true
    noncurrent_version_expiration_days = 0
    abort_incomplete_upload_days       = 0
  }
}

# The role in which each tenant's service runs, here on EC2.
resource "aws_iam_role" "tenant" {
  for_each = var.tenants

  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.assume.json
}

data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role_policy_attachment" "tenant" {
  for_each = var.tenants

  role       = aws_iam_role.tenant[each.key].name
  policy_arn = module.endpoint.invoke_policies[each.key].arn
}

# With this they call models by name ("team-a/bert", "shared/bert@staging"), and not only by target: mme.client looks up
# which version a name means.
resource "aws_iam_role_policy" "lookup" {
  for_each = var.tenants

  name   = "lookup"
  role   = aws_iam_role.tenant[each.key].name
  policy = module.endpoint.lookup_policy_json
}
