"""Pictures of all directions: what is made of an equirectangular picture."""
