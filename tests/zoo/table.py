"""Every network that the law is tried on."""

from zoo import handmade, timm_table, torchvision_table, transformers_generic, transformers_table

ENTRIES = [
    *handmade.ENTRIES,
    *torchvision_table.ENTRIES,
    *transformers_table.ENTRIES,
    *transformers_generic.ENTRIES,
    *timm_table.ENTRIES,
]
