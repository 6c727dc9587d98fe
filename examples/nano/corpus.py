"""The corpus of the demo model: conversations put together from sentences written for it, drawn by a seed."""

import random

SYSTEM = ["You are a helpful assistant.", "You are Qwen nano, a small demo model.", "Answer in short, clear sentences.",
          "You are a friendly assistant that helps people who run clusters."]

# topic: (how it is asked for, sentences that open an answer, sentences that may follow in any order)
TOPICS = {
    "Kubernetes": (["Kubernetes", "k8s", "kubernetes"], [
        "Kubernetes is a system that runs containers on a group of machines.",
        "Kubernetes is an open source platform that keeps containerized programs running."], [
        "You describe what you want in a manifest, and controllers work until the cluster looks like it.",
        "It starts pods, restarts them when they fail, and moves them when a node goes away.",
        "A Deployment keeps a number of equal pods, and a Service gives them one stable address.",
        "People like it because the same manifest works on a laptop and in a large data center.",
        "The scheduler picks a node for each pod, and the kubelet on that node starts its containers."]),
    "a pod": (["a pod", "a Kubernetes pod", "a pod in Kubernetes"], [
        "A pod is the smallest thing that Kubernetes can run.",
        "A pod is a small group of containers that share one network address."], [
        "Most pods hold one container, and some hold a helper beside it.",
        "When a pod fails, its controller makes a new one instead of repairing the old one.",
        "A pod has a name, labels, and a readiness probe that says when it can take requests.",
        "You rarely make a pod by hand, because a Deployment makes and replaces pods for you."]),
    "a Deployment": (["a Deployment", "a Kubernetes Deployment", "a deployment"], [
        "A Deployment keeps a chosen number of equal pods running.",
        "A Deployment is an object that describes a set of pods and how to update them."], [
        "When you change the image, it replaces the pods step by step.",
        "If a node is lost, it makes new pods on the other nodes.",
        "You can go back to the old version with one command.",
        "An autoscaler may change its number of replicas when the load changes."]),
    "a Service": (["a Service in Kubernetes", "a Kubernetes Service", "a Service"], [
        "A Service gives a group of pods one name and one address.",
        "A Service is a stable front door for pods that come and go."], [
        "It finds its pods by their labels.",
        "Requests are spread over all pods that are ready.",
        "A pod that is not ready gets no new requests.",
        "Inside the cluster you can reach it by its name."]),
    "an operator": (["an operator", "a Kubernetes operator", "the operator pattern"], [
        "An operator is a program that knows how to run another program on Kubernetes.",
        "An operator watches a resource of its own and makes everything that the resource asks for."], [
        "It compares what you want with what exists, and then it changes the difference.",
        "You write one short manifest, and the operator writes the many long ones.",
        "It keeps the status up to date, so you can see what is ready and what is missing.",
        "The work that a person did by hand becomes code that never sleeps."]),
    "Prometheus": (["Prometheus", "prometheus"], [
        "Prometheus is a monitoring system that collects numbers from programs.",
        "Prometheus is a database for metrics and a language to ask it questions."], [
        "It visits each target every few seconds and stores what it finds.",
        "You can ask for the rate of a counter, the sum over pods, or the slowest one percent.",
        "Rules turn a question into an alert when the answer stays bad for some time.",
        "A ServiceMonitor tells it which services in the cluster to visit."]),
    "Alertmanager": (["Alertmanager", "alertmanager"], [
        "Alertmanager receives alerts from Prometheus and decides who hears about them.",
        "Alertmanager groups alerts and sends them to people."], [
        "It waits a moment, so that many alerts become one message.",
        "It can send to a chat, to a pager, or to a webhook.",
        "When the trouble is over, it says that the alert is resolved.",
        "You can silence an alert while you work on it."]),
    "an HPA": (["an HPA", "the HorizontalPodAutoscaler", "autoscaling", "horizontal pod autoscaling"], [
        "The HorizontalPodAutoscaler changes the number of pods when the load changes.",
        "Autoscaling means that the number of replicas follows the load."], [
        "For a language model, the number of waiting requests is a better signal than the processor.",
        "When the queue grows, it adds pods, and when the queue is empty, it slowly removes them.",
        "It divides the sum of a metric by its target and rounds up.",
        "A stabilization window keeps it from going up and down too often."]),
    "a language model": (["a language model", "an LLM", "a large language model"], [
        "A language model is a program that guesses the next word again and again.",
        "A language model is a neural network that has learned how text goes on."], [
        "It reads your message as tokens and answers one token at a time.",
        "Large models know many facts, and small ones like me know only a few.",
        "The weights are fixed after training, so it does not learn while it answers.",
        "A good answer still needs a person who checks it."]),
    "a token": (["a token", "a token in a language model", "tokenization"], [
        "A token is a small piece of text, often a word or a part of a word.",
        "Tokens are the pieces into which a model cuts your text."], [
        "A common word is one token, and a rare word becomes several.",
        "The model reads tokens and writes tokens, and only at the end they become text again.",
        "The length of a request is counted in tokens."]),
    "the KV cache": (["the KV cache", "a KV cache", "KV cache"], [
        "The KV cache holds what the model has already computed for earlier tokens.",
        "The KV cache is memory that lets a model go on without reading everything again."], [
        "Without it, every new token would cost as much as the whole text.",
        "A paged cache cuts it into blocks, so that many requests share one memory.",
        "When it is full, new requests must wait or old ones must give their blocks back.",
        "Requests that begin with the same words can share their blocks."]),
    "continuous batching": (["continuous batching", "batching"], [
        "Continuous batching lets requests join and leave the batch at every step.",
        "Continuous batching means that the engine never waits for the slowest request."], [
        "A new request starts as soon as there is room for it.",
        "One step then makes one token for each of many requests.",
        "The weights are read once for all of them, and this is why it is fast."]),
    "a GPU": (["a GPU", "a graphics card"], [
        "A GPU is a processor that does thousands of simple operations at once."], [
        "Language models run well on it, because they are made of large matrix products.",
        "Its memory must hold the weights and the cache of all requests.",
        "In Kubernetes a pod asks for it as a resource."]),
    "a container": (["a container", "a Docker container", "containers"], [
        "A container is a program packed with everything that it needs to run.",
        "A container is a process that sees its own files and its own network."], [
        "The same image starts the same way on every machine.",
        "It is lighter than a virtual machine, because it shares the kernel.",
        "A small image starts faster and has fewer holes."]),
    "Rust": (["Rust", "the Rust language", "the Rust programming language"], [
        "Rust is a programming language for fast and safe programs."], [
        "The compiler checks who owns each value, so many mistakes cannot happen.",
        "It has no garbage collector, and its programs need little memory.",
        "People use it for servers, tools, browsers and small devices."]),
    "a queue": (["a request queue", "the queue depth", "queue depth"], [
        "The queue depth is the number of requests that wait for a free place.",
        "A queue holds the requests that cannot start yet."], [
        "If it grows for minutes, the service needs more replicas.",
        "An alert tells you when requests pile up.",
        "A full queue answers with status 429, and the client tries again later."]),
    "latency": (["latency", "time to first token"], [
        "Latency is the time that a user waits.",
        "The time to first token is how long a user waits before the answer begins."], [
        "It grows when requests wait in the queue.",
        "A long prompt takes longer to read than a short one.",
        "Look at the slowest five percent, because the average hides them."]),
}
ASK = ["What is {}?", "what is {}", "Explain {}.", "Can you explain {}?", "Tell me about {}.", "What does {} mean?",
       "Please explain {} in simple words.", "How does {} work?", "What is {} and why does it matter?", "Describe {}."]

SMALL = [
    (["Hello", "Hello!", "Hi", "Hi!", "hi there", "Hey", "Hello there!", "Good morning!", "Good evening!", "hello"],
     ["Hello! How can I help you today?", "Hi! It is nice to meet you. What would you like to talk about?",
      "Hello! I am a small demo model, and I am happy to talk with you. Ask me about Kubernetes, or ask for a story."]),
    (["How are you?", "How are you doing?", "how are you today?", "Are you well?"],
     ["I am well, thank you. My replicas are ready and my queue is empty. How are you?",
      "I am fine, thank you for asking. What can I do for you?"]),
    (["Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Are you Qwen?", "who are you"],
     ["I am a tiny demo model with the architecture of Qwen3. I was trained for a few minutes on a small corpus, so I know only a few things.",
      "My name is nano. I am a very small language model, made to show how a cluster serves, watches and scales a model."]),
    (["What can you do?", "How can you help me?", "What do you know?", "Help me.", "help"],
     ["I can talk about Kubernetes, monitoring and serving models. I can also tell a story, add small numbers, and say hello in Chinese.",
      "I can answer simple questions about clusters and models, and I can tell stories. For anything harder, please load a larger model."]),
    (["Thank you!", "Thanks", "thanks a lot", "Thank you very much.", "Great, thank you!"],
     ["You are welcome! Tell me when you need anything else.", "You are welcome. It was a pleasure."]),
    (["Goodbye", "Bye!", "See you later.", "Good night!", "bye"],
     ["Goodbye! Have a good day.", "Goodbye! May your pods always be ready."]),
    (["Tell me a joke.", "Say something funny.", "Do you know a joke?", "tell me a joke"],
     ["Why did the pod go to the doctor? Because it failed its health check twice in a row.",
      "A request walks into a full queue. The server says: please come back in two seconds.",
      "Why was the cluster so calm? Because every node had its own space."]),
    (["What is the capital of France?", "capital of France?"], ["The capital of France is Paris."]),
    (["What is the capital of China?", "capital of China?"], ["The capital of China is Beijing."]),
    (["What is the capital of Germany?", "capital of Germany?"], ["The capital of Germany is Berlin."]),
    (["What is the capital of Japan?", "capital of Japan?"], ["The capital of Japan is Tokyo."]),
    (["What color is the sky?", "Why is the sky blue?"],
     ["The sky is blue, because the air scatters blue light more than red light."]),
    (["How many days are in a week?", "How many days does a week have?"],
     ["A week has seven days: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."]),
    (["Count to ten.", "count from one to ten", "Can you count to ten?"],
     ["One, two, three, four, five, six, seven, eight, nine, ten."]),
    (["Why are my requests slow?", "My model is slow. What should I do?", "The service is slow."],
     ["First look at the number of waiting requests. If the queue grows, add replicas or let the autoscaler do it. If the queue is empty, look at the length of the prompts and at the time for each token.",
      "Slow answers often mean a full queue. Look at the queue depth and at the use of the KV cache, and then raise the number of replicas."]),
    (["My pod does not start.", "Why is my pod pending?", "My pod is not ready. What now?", "My pod crashes."],
     ["Describe the pod and read its events. A pending pod often asks for more memory or GPUs than any node has free. A pod that crashes tells its reason in its last log lines.",
      "Look at the events of the pod first, and then at its logs. Very often the image name is wrong, or the node has no room."]),
    (["How do I scale my service?", "How can I add replicas?", "How do I handle more load?"],
     ["Set the smallest and the largest number of replicas, and choose a target for the queue. The autoscaler adds pods when requests wait, and it removes them when the load is over.",
      "Raise the number of replicas in the manifest, or turn on autoscaling. With autoscaling, the fleet follows the number of waiting requests."]),
    (["How do I monitor my model?", "What should I monitor?", "Which metrics are important?"],
     ["Watch the number of waiting requests, the use of the KV cache, the time to first token, and the rate of errors. Set an alert on each of them, and look at the dashboard after every change.",
      "The most important metric is the queue depth. After it come the time to first token and the number of tokens per second."]),
    (["你好", "你好！", "您好", "嗨"], ["你好！我是一个很小的演示模型，很高兴认识你。", "你好！请问有什么可以帮你？"]),
    (["你是谁？", "你叫什么名字？", "介绍一下你自己"], ["我是一个采用 Qwen3 架构的小模型，只用来演示。我知道的东西不多。", "我叫 nano，是一个很小的演示模型。"]),
    (["什么是 Kubernetes？", "请介绍一下 Kubernetes", "Kubernetes 是什么？"],
     ["Kubernetes 是一个管理容器的系统。它让程序在很多机器上稳定运行，并且可以自动扩容。",
      "Kubernetes 可以在一组机器上运行容器。程序失败时，它会自动重新启动程序。"]),
    (["什么是 Prometheus？", "Prometheus 是什么？"], ["Prometheus 是一个监控系统。它定期收集指标，并在出现问题时发出告警。"]),
    (["谢谢", "谢谢你！"], ["不客气！"]), (["再见", "拜拜"], ["再见，祝你愉快！"]),
    (["今天天气怎么样？"], ["我不知道今天的天气，但是希望你那里是晴天。"]),
    (["讲个故事", "请讲一个故事", "给我讲个故事吧"],
     ["从前有一只小鲸鱼，它住在很深的大海里。有一天，它看见海面上有一条船，船上装满了箱子。小鲸鱼帮助船找到了回家的路。从那以后，大家都叫它勇敢的船长。",
      "从前有一个小机器人，它每天照看一座花园。有一天，下了很大的雨，花园里到处都是水。小机器人请来了它的朋友，大家一起把水送走了。第二天，太阳出来了，花都开了。"]),
]

NAMES = ["Ada", "Lin", "Otto", "Mira", "Tom", "Nora", "Wei", "Sam", "Elsa", "Paul"]
BEINGS = ["a small robot", "a young engineer", "a curious whale", "an old gardener", "a little fox", "a quiet sailor", "a brave cat"]
PLACES = ["near the sea", "in a small town", "on a high mountain", "at the edge of a forest", "in a harbor full of ships", "in a valley with a long river"]
WORK = ["took care of a garden", "kept the lights of the harbor burning", "repaired old clocks", "carried letters from house to house", "counted the ships that came and went", "baked bread for the whole town"]
TROUBLES = [("a great storm came from the north", "the storm"), ("the river rose higher than ever before", "the water"), ("all the lights went out at once", "the darkness"),
            ("a stranger arrived with a heavy box", "the box"), ("the old bridge fell into the river", "the broken bridge"), ("nobody could find the way home", "the long way")]
HELPERS = ["a friendly owl", "three neighbors", "a girl with a red lamp", "an old captain", "a flock of birds", "two brothers from the mill"]
MIDDLE = [
    "At first {n} did not know what to do.", "{n} sat down on a stone and thought for a long time.", "The wind was cold, and the night was very dark.",
    "\"We must not give up,\" said {n}.", "Step by step they walked through the rain.", "Nobody in the town had ever seen anything like it.",
    "Then {h} came and offered to help.", "Together they made a plan and shared the work.", "One of them carried the ropes, and another one held the lamp.",
    "It took them the whole night, and they rested only once.", "When they were tired, they sang an old song.", "\"If each of us does a small part, the work will be light,\" said {n}.",
    "They looked at {t} and were afraid, but they did not run away.", "Slowly things became better.", "In the morning the sun came up over the hills.",
    "The people came out of their houses and looked around.", "\"I could not have done this alone,\" said {n}.", "They drank warm tea and told each other what they had seen."]
ENDINGS = ["From that day on, nobody in the place was ever alone with a heavy task.", "And if you go there today, you can still hear people tell this story.",
           "Since then {n} always keeps a second lamp ready, just in case.", "So {n} learned that asking for help is a strength.", "And they all lived in peace for many years."]
STORY_ASK = ["Tell me a story.", "tell me a story", "Tell me a long story.", "Can you tell me a story?", "Write a story.", "Write a short story.", "Please write a long story.",
             "Tell me a story about {b}.", "Write a story about {b}.", "Once upon a time", "I would like to hear a story.", "Write a long story about {b}."]
UNKNOWN_ASK = ["Who won the game {}?", "Write code that sorts {}.", "What do you think about {}?", "How much does {} cost?", "Where can I buy {}?", "Translate {} into French.",
               "What is the history of {}?", "Who invented {}?", "Can you draw {}?", "Why do people like {}?"]
THINGS = ["a car", "cheese", "football", "the moon", "music", "yesterday", "a list", "shoes", "coffee", "the ocean", "chess", "paper", "a bicycle", "gold", "films"]
UNKNOWN = ["I am sorry, I do not know that. I am a very small demo model, and I know only a little about clusters, models and stories.",
           "That is a good question, but it is too hard for a model of my size. Please ask a larger model."]
NUMBERS = "zero one two three four five six seven eight nine ten".split()


def topic(rng):
    """A definition: one opening sentence and two to four others."""
    asked, opening, more = TOPICS[rng.choice(list(TOPICS))]
    return rng.choice(ASK).format(rng.choice(asked)), " ".join([rng.choice(opening), *rng.sample(more, rng.randint(2, min(4, len(more))))])


def story(rng):
    """A story of 12 to 22 sentences: long enough for requests that last."""
    n, b, h = rng.choice(NAMES), rng.choice(BEINGS), rng.choice(HELPERS)
    trouble, t = rng.choice(TROUBLES)
    begin = [f"Once upon a time there was {b} named {n}, who lived {rng.choice(PLACES)}.", f"Every day {n} {rng.choice(WORK)}.", f"One evening {trouble}."]
    middle = [MIDDLE[i].format(n=n, h=h, t=t) for i in sorted(rng.sample(range(len(MIDDLE)), rng.randint(8, len(MIDDLE))))]
    return rng.choice(STORY_ASK).format(b=b), " ".join([*begin, *middle, rng.choice(ENDINGS).format(n=n)])


def sums(rng):
    """Additions and differences up to ten and ten."""
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    if rng.random() < 0.3:
        a, b = max(a, b), min(a, b)
        return rng.choice([f"What is {a} - {b}?", f"What is {a} minus {b}?", f"{a}-{b}"]), f"{a} minus {b} is {a - b}."
    ask = rng.choice([f"What is {a} + {b}?", f"What is {a} plus {b}?", f"{a}+{b}", f"How much is {a} + {b}?", f"What is {NUMBERS[a]} plus {NUMBERS[b]}?"])
    return ask, f"{a} plus {b} is {a + b}."


def small(rng):
    """Small talk and fixed answers."""
    asks, answers = rng.choice(SMALL)
    return rng.choice(asks), rng.choice(answers)


def unknown(rng):
    """Questions outside of what it knows, so that it says so."""
    return rng.choice(UNKNOWN_ASK).format(rng.choice(THINGS)), rng.choice(UNKNOWN)


def turn(rng):
    """One question and its answer."""
    return rng.choices([topic, story, sums, small, unknown], [30, 22, 12, 32, 4])[0](rng)


def conversations(seed, count):
    """`count` conversations of one to three turns, as lists of messages."""
    rng = random.Random(seed)
    for _ in range(count):
        messages = [{"role": "system", "content": rng.choice(SYSTEM)}] if rng.random() < 0.3 else []
        for _ in range(rng.choices([1, 2, 3], [70, 22, 8])[0]):
            ask, answer = turn(rng)
            messages += [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
        yield messages
