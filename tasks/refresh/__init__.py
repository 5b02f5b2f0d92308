"""The stages of a refresh: ordinary cached stages that also read the current snapshot's artefacts."""
