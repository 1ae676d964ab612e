"""Every network that the law is tried on."""

from zoo import handmade, timm_table, torchvision_table, transformers_table

ENTRIES = [*handmade.ENTRIES, *torchvision_table.ENTRIES, *transformers_table.ENTRIES, *timm_table.ENTRIES]
