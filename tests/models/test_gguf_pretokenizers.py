"""The splits of every pre-tokenizer of llama.cpp, as its models' own patterns make them."""

from __future__ import annotations

import pytest
from tokenizers import Regex
from tokenizers.pre_tokenizers import Sequence, Split

from outlay.models.gguf_pretokenizers import PRE_TOKENIZERS

PROSE = "I've 12345  don't WE'LL camelCase(x, y); 東京é\n\n a/b/ "
SCRIPTS = '中文，测试。ㄅㄆ가나다 ไทย naïve ａｂ！ 1234567    {"k": 0x1F}\r\n'
# Names, and the pieces of both texts. Made with the `regex` package from the published patterns, not from ours.
SPLITS = [
    (
        "default",
        "I|'|ve| |123|45| | don|'|t| WE|'|LL| camelCase|(|x|,| y|);| 東京é|\n\n| a|/|b|/| ",
        '中文|，|测试|。|ㄅㄆ가나다| ไทย| naïve| ａｂ|！| |123|456|7|    |{"|k|":| |0|x|1|F|}|\r\n',
    ),
    (
        "gpt-2 phi-2 olmo mpt jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum modern-bert jina-es "
        "jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe",
        "I|'ve| 12345| | don|'t| WE|'|LL| camelCase|(|x|,| y|);| 東京é|\n\n| a|/|b|/| ",
        '中文|，|测试|。|ㄅㄆ가나다| ไทย| naïve| ａｂ|！| 1234567|   | {"|k|":| 0|x|1|F|}|\r\n',
    ),
    (
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        "I|'ve| |1|2|3|4|5| | don|'t| WE|'|LL| camelCase|(|x|,| y|);| 東京é|\n\n| a|/|b|/| ",
        '中文|，|测试|。|ㄅㄆ가나다| ไทย| naïve| ａｂ|！| |1|2|3|4|5|6|7|   | {"|k|":| |0|x|1|F|}|\r\n',
    ),
    (
        "falcon",
        "I|'|ve| |123|45| | don|'|t| WE|'|LL| camelCase|(|x|,| y|);| 東京é|\n\n| a|/|b|/| ",
        '中文|，|测试|。|ㄅㄆ가나다| ไทย| naïve| ａｂ|！| |123|456|7|    |{"|k|":| 0|x|1|F|}|\r\n',
    ),
    (
        "chameleon",
        "I|'|ve| |1|2|3|4|5|  |don|'|t| WE|'|LL| camelCase|(|x|,| y|)|;| 東京é|\n|\n| a|/|b|/| ",
        '中文|，|测试|。|ㄅㄆ가나다| ไทย| naïve| ａｂ|！| |1|2|3|4|5|6|7|    |{|"|k|"|:| |0|x|1|F|}|\r|\n',
    ),
    (
        "bloom poro-chat gpt3-finnish",
        "I've| 12345| | don't| WE'LL| camelCase|(|x|,| y|)|;| 東京é|\n\n| a/b/| ",
        '中文|，|测试|。|ㄅㄆ가나다| ไทย| naïve| ａｂ！| 1234567|   | {"k":| 0x1F}|\r\n',
    ),
    (
        "viking",
        "I've| |1|2|3|4|5| | don't| WE'LL| camelCase|(|x|,| y|)|;| 東京é|\n\n| a/b/| ",
        '中文|，|测试|。|ㄅㄆ가나다| ไทย| naïve| ａｂ！| |1|2|3|4|5|6|7|   | {"k":| |0|x|1|F}|\r\n',
    ),
    (
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano smaug-bpe dbrx glm4 "
        "chatglm-bpe minicpm5",
        "I|'ve| |123|45| | don|'t| WE|'LL| camelCase|(x|,| y|);| 東京é|\n\n| a|/b|/| ",
        '中文|，测试|。ㄅㄆ가나다| ไทย| naïve| ａｂ|！| |123|456|7|   | {"|k|":| |0|x|1|F|}\r\n',
    ),
    (
        "jais-2",
        "I|'ve| |123|45| | don|'t| WE|'LL| camelCase|(x|,| y|);| 東京é|\n\n| a|/b|/| ",
        '中文|，测试|。ㄅㄆ가나다| ไทย| naïve| ａｂ|！| |123|456|7|  | | {"|k|":| |0|x|1|F|}\r\n',
    ),
    (
        "qwen2 deepseek-r1-qwen megrez kormo f2llmv2 stablelm2 hunyuan solar-open grok-2 qwen35 ufakzeka bailingmoe "
        "bailingmoe2 llada-moe",
        "I|'ve| |1|2|3|4|5| | don|'t| WE|'LL| camelCase|(x|,| y|);| 東京é|\n\n| a|/b|/| ",
        '中文|，测试|。ㄅㄆ가나다| ไทย| naïve| ａｂ|！| |1|2|3|4|5|6|7|   | {"|k|":| |0|x|1|F|}\r\n',
    ),
    (
        "laguna",
        "I|'ve| |1|2|3|4|5| | don|'t| WE|'LL| camelCase|(x|,| y|);| 東京é|\n\n| a|/b|/| ",
        '中文|，测试|。ㄅㄆ가나다| ไทย| naïve| ａｂ|！| |1|2|3|4|5|6|7|   | {"|k|":| |0|x|1|F|}\r|\n',
    ),
    (
        "seed-coder",
        "I|'ve| |1|2|3|4|5| | don|'t| WE|'LL| camelCase|(x|,| y|);| 東京é|\n\n| a|/b|/| ",
        '中文|，测试|。ㄅㄆ가나다| ไทย| naïve| ａｂ|！| |1|2|3|4|5|6|7|   | {"|k|":| |0|x|1|F|}|\r\n',
    ),
    (
        "exaone-moe",
        "I|'ve| |1|2|3|4|5| | don|'t| WE|'LL| camelCase|(x|,| y|);| 東京é|\n\n| a|/b|/| ",
        '中文|，测试|。ㄅㄆ가나다 ไทย naïve ａｂ|！| |1|2|3|4|5|6|7|   | {"|k|":| |0|x|1|F|}\r|\n',
    ),
    (
        "gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m",
        "I've| |123|45| | don't| WE'LL| camel|Case|(x|,| y|);| 東京é|\n\n| a|/b|/| ",
        '中文|，测试|。ㄅㄆ가나다| ไทย| naïve| ａｂ|！| |123|456|7|   | {"|k|":| |0|x|1|F|}\r\n',
    ),
    (
        "tekken",
        "I|'ve| |1|2|3|4|5| | don|'t| WE|'LL| camel|Case|(x|,| y|);| 東京é|\n\n| a|/b|/| ",
        '中文|，测试|。ㄅㄆ가나다| ไทย| naïve| ａｂ|！| |1|2|3|4|5|6|7|   | {"|k|":| |0|x|1|F|}\r\n',
    ),
    (
        "tiny_aya cohere2moe",
        "I've| |12|345| | don't| WE'LL| camel|Case|(x|,| y|);| 東京é|\n\n| a|/b|/| ",
        '中文|，测试|。ㄅㄆ가나다| ไทย| naïve| ａｂ|！| |1|234|567|   | {"|k|":| |0|x|1|F|}\r\n',
    ),
    (
        "youtu",
        "I've| |1|2|3|4|5| | don't| WE'LL| camel|Case|(x|,| y|);| |東京|é|\n\n| a|/b|/| ",
        '中文|，|测试|。|ㄅㄆ|가나다| ไทย| naïve| ａｂ|！| |1|2|3|4|5|6|7|   | {"|k|":| |0|x|1|F|}\r\n',
    ),
    (
        "kimi-k2",
        "I've| |123|45| | don't| WE'LL| camel|Case|(x|,| y|);| |東京|é|\n\n| a|/b|/| ",
        '中文|，|测试|。ㄅㄆ가나다| ไทย| naïve| ａｂ|！| |123|456|7|   | {"|k|":| |0|x|1|F|}\r\n',
    ),
    (
        "deepseek-llm",
        "I|'|ve| |12345| | don|'|t| WE|'|LL| camelCase|(|x|,| y|);| |東京|é|\n|\n| a|/|b|/| ",
        '中文|，|测试|。|ㄅㄆ가나다| |ไทย| na|ï|ve| ａｂ|！| |1234567|   | {"|k|":| |0|x|1|F|}|\r|\n',
    ),
    (
        "deepseek-coder",
        "I|'|ve| |1|2|3|4|5| | don|'|t| WE|'|LL| camelCase|(|x|,| y|);| |東京|é|\n|\n| a|/|b|/| ",
        '中文|，|测试|。|ㄅㄆ가나다| |ไทย| naïve| ａｂ|！| |1|2|3|4|5|6|7|   | {"|k|":| |0|x|1|F|}|\r|\n',
    ),
    (
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        "I|'ve| |123|45| | don|'t| WE|'LL| camelCase|(x|,| y|);| |東京|é|\n\n| a|/b|/| ",
        '中文|，|测试|。|ㄅㄆ가나다| ไทย| naïve| ａｂ|！| |123|456|7|   | {"|k|":| |0|x|1|F|}\r\n',
    ),
    (
        "spark2_5",
        "I|'ve| |1|2|3|4|5| | don|'t| WE|'LL| camelCase|(x|,| y|);| |東京|é|\n|\n| a|/b|/| ",
        '中文|，|测试|。|ㄅㄆ가나다| ไทย| naïve| ａｂ|！| |1|2|3|4|5|6|7|   | {"|k|":| |0|x|1|F|}|\r|\n',
    ),
    (
        "afmoe",
        "I|'ve| |12|345| | don|'t| WE|'LL| camelCase|(x|,| y|);| |東京|é|\n\n| a|/b|/| ",
        '中文|，|测试|。|ㄅㄆ|가나다| |ไ|ทย| naïve| ａｂ|！| |1|234|567|   | {"|k|":| |0|x|1|F|}\r\n',
    ),
    (
        "superbpe",
        "I've |12|345|  don't WE'LL camelCase(x, y); 東京é\n\n a/b/ ",
        '中文，测试。ㄅㄆ가나다 ไทย naïve ａｂ！ |1|234|567|    {"k": |0|x|1|F}\r\n',
    ),
    (
        "gemma4 granite-embed-multi-311m sarvam-moe",
        "I've 12345  don't WE'LL camelCase(x, y); 東京é|\n\n| a/b/ ",
        '中文，测试。ㄅㄆ가나다 ไทย naïve ａｂ！ 1234567    {"k": 0x1F}\r|\n',
    ),
]


def pieces(name: str, text: str) -> str:
    splits = Sequence([Split(Regex(split), "isolated") for split in PRE_TOKENIZERS[name].splits])
    return "|".join(piece for piece, _ in splits.pre_tokenize_str(text))


@pytest.mark.parametrize(("names", "prose", "scripts"), SPLITS)
def test_text_is_split_as_the_models_own_patterns_split_it(names: str, prose: str, scripts: str) -> None:
    for name in names.split():
        assert pieces(name, PROSE) == prose
        assert pieces(name, SCRIPTS) == scripts


def test_every_name_is_tested() -> None:
    assert sorted(name for names, _, _ in SPLITS for name in names.split()) == sorted(PRE_TOKENIZERS)
