"""`helm test`: does Katib know our algorithms, with this release's image? Arguments: Katib's namespace, the image."""

import sys

from retune.engines.katib import registration
from retune.engines.katib.api import Api

namespace, image = sys.argv[1:]
found = Api(namespace, patience=60).config_map(registration.CONFIG_MAP)
text = found["data"][registration.KEY] if found else sys.exit(f"{namespace} has no {registration.CONFIG_MAP}")
ours = [entry for entry in registration.suggestions(text) if registration.is_ours(entry)]
if not ours or any(entry["image"] != image for entry in ours):
    sys.exit(f"{namespace}/{registration.CONFIG_MAP} does not have our algorithms with the image {image}")
print(f"Katib has our algorithms with the image {image}")
