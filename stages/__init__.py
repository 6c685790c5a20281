"""One file per stage. The catalogue maps `use:` names to classes without importing them."""

CATALOG = {
    "vad.silero": "vad:SileroVad",
    "asr.causal": "asr_causal:CausalAsr",
    "asr.moonshine": "asr_moonshine:MoonshineAsr",
    "asr.nemotron": "asr_nemotron:NemotronAsr",
    "asr.pocketsphinx": "asr:PocketSphinxAsr",
    "turn.detector": "turn:TurnDetector",
    "agent.commands": "agent:CommandsAgent",
    "llm.chat": "llm:LlmChat",
    "audio.echo_guard": "echo:EchoGuardStage",
    "turn.manager": "turn_manager:TurnManager",
    "tts.stream": "tts:StreamTts",
    "video.overlay": "overlay:CaptionOverlay",
    "diffusion.stream": "diffusion:DiffusionStream",
    "video.restyle": "restyle:Restyle",
    "video.look": "look:Look",
    "focus.detect": "focus_detect:FocusDetect",
    "vlm.stream": "vlm:VlmStream",
    "vlm.toy": "vlm_toy:VlmToy",
    "synthetic.world": "world:SyntheticWorld",
}
