# Region and credentials come from the environment.
provider "aws" {}

# The same models on two kinds of machine. Traffic is shared by weight; a caller can name one with TargetVariant.
module "endpoint" {
  source = "../.."

  name = var.name

  variants = merge(
    {
      baseline = {
        instance_type  = "ml.m5.xlarge"
        instance_count = 1
        weight         = 9
      }
    },
    var.challenger == null ? {} : {
      challenger = {
        instance_type = var.challenger.instance_type
        weight        = var.challenger.weight
        environment   = { OMP_NUM_THREADS = "2" }
      }
    },
  )

  bucket = {
    # An example is there to be taken down again.
    force_destroy                      = true
    noncurrent_version_expiration_days = 0
    abort_incomplete_upload_days       = 0
  }
}
