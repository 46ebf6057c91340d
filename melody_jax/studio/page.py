"""The page of the studio: gradio lays out and draws the forms, the scripts in `assets` do the rest.

Every event of a form calls a function of the scripts (`fn=None`), and they call the JSON API, as any other client does.
So the page has no state on the server, needs none of gradio's routes that take data, and comes back after a restart.

    form       gradio, here         the settings of a request
    scripts    assets/*.js          takes, progress, waveforms, recording, story, comparison
    style      assets/page.css

Prompts and titles reach the page as text of the document, never as HTML.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from gradio.components import Component
from gradio.themes.base import Base as Theme

from melody_jax.sampling.request import Request
from melody_jax.studio.features import Features, features
from melody_jax.studio.jobs import JobQueue
from melody_jax.studio.making import EXTENSION_SECONDS

ASSETS = Path(__file__).parent / "assets"
EXAMPLES = (
    "a calm solo piano piece",
    "driving techno at 130 bpm",
    "slow sad cello",
    "bossa nova with soft guitar",
    "bright funk with a slap bass",
    "a waltz for accordion in a minor key",
)
"""Prompts to begin with; the packaged release knows their words."""
SHORTEST_SECONDS = 1.0
FONTS = ("system-ui", "sans-serif")
MONOSPACED_FONTS = ("ui-monospace", "monospace")
ROOT = "/studio"
"""Where the scripts and the style are."""
SHOW_FORMS = f"""async () => {{
  await import("{ROOT}/page.js");
  document.documentElement.dataset.ready = "";
  return [];
}}"""
"""Shows the forms. gradio draws them before anything listens to their buttons: a click would be lost in silence."""


def mount_page(app: FastAPI, queue: JobQueue) -> FastAPI:
    """Adds the page to an app, at "/"; call it after all other routes are added."""
    app.mount(ROOT, StaticFiles(directory=ASSETS), name="studio")
    head = (
        '<link rel="icon" href="data:,">'
        f'<link rel="stylesheet" href="{ROOT}/page.css">'
        f'<script type="module" src="{ROOT}/page.js"></script>'
    )
    return gr.mount_gradio_app(
        app,
        make_page(features(queue.system, queue.release.distilled)),
        path="/",
        theme=_theme(),
        head=head,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        max_file_size=0,
    )


def _theme() -> Theme:
    """Colours of sufficient contrast (WCAG AA), and the fonts of the machine: nothing is loaded from elsewhere."""
    theme = Theme(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=MONOSPACED_FONTS
    )
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        color_accent="*primary_700",
        slider_color="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        button_large_text_weight="500",
        block_title_text_color="*neutral_700",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_background_fill="white",
        checkbox_background_color_selected="*primary_700",
    )


def _html(value: str) -> gr.HTML:
    """HTML of the page's own, without the style that gradio gives to prose."""
    return gr.HTML(value, apply_default_css=False)


def make_page(can: Features) -> gr.Blocks:
    """The page of a system with these features."""
    with gr.Blocks(title="melody studio", analytics_enabled=False, fill_width=True) as page:
        _html(_banner())
        with gr.Row(elem_id="desk"):
            with gr.Column(scale=2, min_width=320, elem_id="forms"):
                shared = _Shared(can)
                with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
                    with gr.Tab("Make", id="make", render_children=True):
                        _make_tab(can, shared)
                    if can.continuation or can.melody or can.style:
                        with gr.Tab("Your sound", id="sound", render_children=True):
                            _sound_tab(can, shared)
                    if can.story:
                        with gr.Tab("Story", id="story", render_children=True):
                            _story_tab(can, shared)
                    with gr.Tab("Compare", id="compare", render_children=True):
                        _html('<div id="compare"></div>')
                shared.render()
            with gr.Column(scale=3, min_width=320, elem_id="takes-column"):
                _html('<section id="takes" aria-label="Takes"></section>')
        _html(_footer(can))
        page.load(None, None, None, js=SHOW_FORMS, queue=False)
    return page


def _banner() -> str:
    return (
        '<header id="banner"><h1>melody studio</h1><p id="machine"></p></header>'
        '<div id="announcer" class="unseen" role="status" aria-live="polite"></div>'
        '<div id="alert" role="alert"></div>'
    )


def _footer(can: Features) -> str:
    flags = {
        name: getattr(can, name)
        for name in ("continuation", "mend", "variation", "restyle", "style", "melody")
    }
    return f'<footer id="facts" data-features="{" ".join(name for name, value in flags.items() if value)}"></footer>'


class _Shared:
    """The settings that all forms share; `inputs` names them as the API does. They are shown below the forms."""

    def __init__(self, can: Features) -> None:
        self.can = can
        self.inputs: dict[str, Component] = {
            "seed": gr.Textbox(
                label="Seed",
                info="A whole number; empty: a new one each time",
                placeholder="new each time",
                max_length=20,
                scale=3,
                render=False,
            )
        }
        if can.negative_prompt:
            self.inputs["negative_prompt"] = gr.Textbox(
                label="Negative prompt", info="What the music is steered away from", render=False
            )
        if can.bpm:
            self.inputs["bpm"] = gr.Number(
                label="Tempo, bpm",
                info="Empty: as the prompt says",
                minimum=1,
                maximum=1000,
                render=False,
                value=None,
            )
        if can.keys:
            self.inputs["key"] = gr.Dropdown(["", *can.keys], value="", label="Key", render=False)
        if can.metres:
            self.inputs["metre"] = gr.Dropdown(["", *can.metres], value="", label="Metre", render=False)
        if len(can.guidance_scales) > 1:
            self.inputs["guidance_scale"] = gr.Slider(
                can.guidance_scales[0],
                can.guidance_scales[-1],
                value=Request.guidance_scale,
                step=0.5,
                label="Guidance",
                info="How closely the sound follows the prompt; 1 turns it off",
                render=False,
            )
        if len(can.steps) > 1:
            self.inputs["steps"] = gr.Dropdown(
                list(can.steps),
                value=Request.steps if Request.steps in can.steps else can.steps[-1],
                label="Diffusion steps",
                info="More take longer",
                render=False,
            )

    def render(self) -> None:
        """Shows the settings."""
        with gr.Row(elem_id="seed-row", elem_classes="action"):
            self.inputs["seed"].render()
            die = gr.Button("⚄ Draw a seed", elem_id="die", scale=2, min_width=120)
        die.click(None, None, self.inputs["seed"], js="() => window.studio.drawSeed()", queue=False)
        others = [name for name in self.inputs if name != "seed"]
        if others:
            with gr.Accordion("Advanced", open=False, elem_id="advanced"):
                for name in others:
                    self.inputs[name].render()


def _on(event: Callable[..., Any], action: str, inputs: dict[str, Component]) -> None:
    """Calls an action of the scripts at an event, with the values of inputs by their names."""
    names = json.dumps(list(inputs))
    event(
        None,
        list(inputs.values()),
        None,
        js=f"(...values) => {{ window.studio.run({json.dumps(action)}, {names}, values); return []; }}",
        queue=False,
    )


def _prompt_box(label: str, info: str = "", lines: int = 2, elem_id: str | None = None) -> gr.Textbox:
    """A box for a text; one of a single line at first submits it with Enter."""
    return gr.Textbox(
        label=label, info=info or None, lines=lines, max_lines=4, max_length=1000, elem_id=elem_id
    )


def _length(can: Features, seconds: float = Request.seconds, label: str = "Length, seconds") -> gr.Slider:
    longest = can.longest_seconds
    return gr.Slider(SHORTEST_SECONDS, longest, value=min(seconds, longest), step=0.5, label=label)


def _weight(label: str, render: bool = True) -> gr.Slider:
    return gr.Slider(0.1, 2, value=0.5, step=0.1, label=label, scale=3, render=render)


def _make_tab(can: Features, shared: _Shared) -> None:
    """A prompt, its examples, and four takes of it."""
    inputs: dict[str, Component] = {}
    if can.prompt:
        prompt = _prompt_box(
            "Prompt", "Describe the music in a few words; Enter makes four takes", 1, "prompt"
        )
        inputs["prompt"] = prompt
        with gr.Row(elem_id="examples"):
            for example in EXAMPLES:
                button = gr.Button(example, size="sm", min_width=0)
                button.click(None, None, prompt, js=f"() => {json.dumps(example)}", queue=False)
    inputs["seconds"] = _length(can)
    if can.blend:
        with gr.Accordion("Blend with a second prompt", open=False):
            inputs["second_prompt"] = _prompt_box("Second prompt")
            inputs["second_weight"] = _weight("Weight, relative to the first prompt")
    with gr.Row():
        one = gr.Button("Make one take", scale=1, min_width=120)
        four = gr.Button("Make four takes", variant="primary", scale=2, min_width=160, elem_id="make-four")
    inputs |= shared.inputs
    _on(four.click, "makeFour", inputs)
    _on(one.click, "makeOne", inputs)
    if can.prompt:
        _on(prompt.submit, "makeFour", inputs)


def _sound_tab(can: Features, shared: _Shared) -> None:
    """A sound of the user or a take, and what can be made from it."""
    _html('<div id="sound"></div>')
    inputs = dict(shared.inputs)
    if can.prompt:
        inputs["prompt"] = _prompt_box("Prompt for the new music", "Empty: in the style of the sound")
    if can.mend:
        _action("Mend the region", "mend", inputs)
    if can.continuation:
        extension = gr.Slider(
            1, 60, value=EXTENSION_SECONDS, step=0.5, label="Seconds more", scale=3, render=False
        )
        _action("Continue", "continue", inputs, extension=extension)
    if can.variation:
        strength = gr.Slider(0.05, 0.95, value=0.5, step=0.05, label="Strength", scale=3, render=False)
        _action("Make a variation", "vary", inputs, strength=strength)
    if can.style or can.melody:
        inputs["seconds"] = _length(can, label="Length of new takes, seconds")
    if can.style:
        _action("Make four in its style", "style", inputs, weight=_weight("Weight", render=False))
    if can.melody:
        _action("Make four that follow its tune", "hum", inputs)


def _action(label: str, action: str, inputs: dict[str, Component], **extra: Component) -> None:
    """A row with the inputs that only an action on the sound has, and its button."""
    with gr.Row(elem_classes="action"):
        for component in extra.values():
            component.render()
        button = gr.Button(label, scale=2, min_width=150)
    _on(button.click, action, inputs | extra)


def _story_tab(can: Features, shared: _Shared) -> None:
    """Prompts that take over at their times."""
    seconds = _length(can, 3 * Request.seconds)
    _html(f'<div id="story" data-seconds="{seconds.value}"></div>')
    seconds.change(
        None,
        seconds,
        None,
        js="seconds => { window.studio.setStoryLength(seconds); return []; }",
        queue=False,
    )
    button = gr.Button("Make the story", variant="primary")
    _on(button.click, "story", {"seconds": seconds} | shared.inputs)
