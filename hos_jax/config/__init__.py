"""The config of a run: its defaults, its checks, its file in the run folder, and its networks."""

from hos_jax._names import lazily

__getattr__, __dir__ = lazily(
    __name__,
    checks="SAMPLERS validate",
    defaults="default_config",
    keys="",
    named="find_config named_config",
    networks="",
    run_file="CONFIG_FILE IDENTITY SAME_ANSWER check_same_denoiser check_same_images "
    "check_same_run differences from_plain image_form image_identity load save "
    "saved_denoiser_answer to_plain versions",
    runners="RUNNERS apply_runner",
    saved_config="",
)
