"""The register: sink candidates ranked, captured in their images, and averaged."""
