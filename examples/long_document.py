"""Ask about one line of a long document, with attention that reads a part of it: `python examples/long_document.py`."""

from statepool import LLM, SamplingParams

FACTS = " ".join(f"The code of item{number} is {1000 + 7 * number}." for number in range(60))
QUESTION = " The code of fox is 472. What is the code of fox?"

llm = LLM("tiny", attention="wave", threads=1, kv_bytes=64 << 20)
answer = llm.generate([FACTS + QUESTION], SamplingParams(max_tokens=16, temperature=0))[0]
print(f"{len(llm.tokens(FACTS + QUESTION))} tokens of document and question")
print(answer.text)
