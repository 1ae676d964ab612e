"""Recurrent networks: torch's layers and cells as people use them, and cells written by hand."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

LAYERS: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
CELLS: dict[str, type[nn.RNNCellBase]] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}


class Tagger(nn.Module):
    """A head at every step."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.rnn = LAYERS[kind](6, 10, **options)
        width = options.get("proj_size", 10) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class LastState(nn.Module):
    """A head on the final states of the last layer, both directions and, of an LSTM, the cell too."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.rnn = LAYERS[kind](6, 10, batch_first=True, **options)
        self.directions = 2 if options.get("bidirectional") else 1
        self.head = nn.Linear(10 * self.directions * (2 if kind == "lstm" else 1), 4)

    def forward(self, x: Tensor) -> Tensor:
        _, states = self.rnn(x)
        states = states if isinstance(states, tuple) else (states,)
        last = [s[-1 - k] for s in states for k in range(self.directions)]
        return self.head(torch.cat(last, dim=-1))


class Flattened(nn.Module):
    """All final states of all layers, flattened into one vector for each sample."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = LAYERS[kind](6, 10, num_layers=2, batch_first=True)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = self.rnn(x)[1]
        state = state[0] if isinstance(state, tuple) else state
        return self.head(state.transpose(0, 1).flatten(1))


class Primed(nn.Module):
    """Initial states made from a context vector, one for each layer."""

    def __init__(self, kind: str, layers: int = 2) -> None:
        super().__init__()
        self.kind, self.layers, self.hidden = kind, layers, 10
        self.start = nn.Linear(5, layers * 10)
        self.rnn = LAYERS[kind](6, 10, num_layers=layers, batch_first=True)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        state = torch.tanh(self.start(context)).view(len(x), self.layers, self.hidden).transpose(0, 1).contiguous()
        steps, _ = self.rnn(x, (state, torch.zeros_like(state)) if self.kind == "lstm" else state)
        return self.head(steps)


class Zeroed(nn.Module):
    """Initial states of zeros, sized by the module's own attributes, as tutorials write them."""

    def __init__(self, kind: str, layers: int = 2) -> None:
        super().__init__()
        self.kind, self.hidden_size, self.num_layers = kind, 10, layers
        self.rnn = LAYERS[kind](6, self.hidden_size, layers, batch_first=True)
        self.fc = nn.Linear(self.hidden_size, 4)

    def forward(self, x: Tensor) -> Tensor:
        h0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size, dtype=x.dtype).to(x.device)
        out, _ = self.rnn(x, (h0, h0.clone()) if self.kind == "lstm" else h0)
        return self.fc(out[:, -1, :])


class Learned(nn.Module):
    """A learned initial state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 10, batch_first=True)
        self.start = nn.Parameter(torch.randn(1, 1, 10))
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x, self.start.expand(-1, len(x), -1).contiguous())[0])


class Packed(nn.Module):
    """Sequences of unequal length, packed; each is read at its last step."""

    def __init__(self, kind: str, *, state: bool = False, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 6)
        self.rnn = LAYERS[kind](6, 10, batch_first=True, **options)
        self.use_state = state
        self.head = nn.Linear(10 * (2 if options.get("bidirectional") else 1), 4)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.table(tokens), lengths, batch_first=True, enforce_sorted=False)
        steps, state = self.rnn(packed)
        if self.use_state:
            final = state[0] if isinstance(state, tuple) else state
            return self.head(torch.cat([final[-2], final[-1]], dim=-1) if self.rnn.bidirectional else final[-1])
        padded, _ = pad_packed_sequence(steps, batch_first=True)
        return self.head(padded)


class Unrolled(nn.Module):
    """A cell in a Python loop, states of zeros at first."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.hidden_size = kind, 10
        self.cell = CELLS[kind](6, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.hidden_size)
        c, outputs = torch.zeros_like(h), []
        for step in x.unbind(1):
            if self.kind == "lstm":
                h, c = self.cell(step, (h, c))
            else:
                h = self.cell(step, h)
            outputs.append(self.head(h))
        return torch.stack(outputs, dim=1)


class TwoCells(nn.Module):
    """Two LSTM cells, one on top of the other, of different widths; no state given at the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = nn.LSTMCell(6, 10), nn.LSTMCell(10, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        low = high = None
        for t in range(x.size(1)):
            low = self.lower(x[:, t], low)
            high = self.upper(low[0], high)
        return self.head(high[0])


class Translator(nn.Module):
    """Encoder and decoder, the states handed over."""

    def __init__(self, kind: str, layers: int = 2) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(40, 8), nn.Embedding(40, 9)
        self.encoder = LAYERS[kind](8, 10, num_layers=layers, batch_first=True)
        self.decoder = LAYERS[kind](9, 10, num_layers=layers, batch_first=True)
        self.head = nn.Linear(10, 40)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        _, state = self.encoder(self.source(source))
        return self.head(self.decoder(self.target(target), state)[0])


class Bridged(nn.Module):
    """A two-way encoder whose final states a linear layer turns into the decoder's; attention over its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(40, 8), nn.Embedding(40, 9)
        self.encoder = nn.GRU(8, 10, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(20, 12)
        self.cell = nn.GRUCell(9 + 20, 12)
        self.query = nn.Linear(12, 20)
        self.head = nn.Linear(12 + 20, 40)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        steps, state = self.encoder(self.source(source))
        h = torch.tanh(self.bridge(torch.cat([state[0], state[1]], dim=1)))
        outputs = []
        for token in self.target(target).unbind(1):
            weights = (steps @ self.query(h).unsqueeze(2)).squeeze(2).softmax(dim=1)
            context = torch.bmm(weights.unsqueeze(1), steps).squeeze(1)
            h = self.cell(torch.cat([token, context], dim=1), h)
            outputs.append(self.head(torch.cat([h, context], dim=1)))
        return torch.stack(outputs, dim=1)


class LanguageModel(nn.Module):
    """Embedding, LSTM, and a decoder that shares the embedding's table."""

    def __init__(self, *, projected: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 12)
        self.rnn = nn.LSTM(12, 20 if projected else 12, 2, batch_first=True, proj_size=12 if projected else 0)
        self.decoder = nn.Linear(12, 40)
        self.decoder.weight = self.table.weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        steps, (h, _) = self.rnn(self.table(tokens))
        return self.decoder(steps), self.decoder(h[-1])


class HandLSTM(nn.Module):
    """An LSTM from one linear layer and chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 10
        self.gates = nn.Linear(6 + 10, 40)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), self.hidden, dtype=x.dtype, device=x.device)
        for t in range(x.shape[1]):
            i, f, g, o = self.gates(torch.cat([x[:, t], h], dim=1)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


class HandGRU(nn.Module):
    """A GRU with two linear layers, gates taken by slices of its own hidden size."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 10
        self.x2h, self.h2h = nn.Linear(6, 30), nn.Linear(10, 30)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = self.hidden_size
        h = x.new_zeros(x.shape[0], n)
        for t in range(x.shape[1]):
            a, b = self.x2h(x[:, t]), self.h2h(h)
            r = torch.sigmoid(a[:, :n] + b[:, :n])
            z = torch.sigmoid(a[:, n : 2 * n] + b[:, n : 2 * n])
            h = (1 - z) * torch.tanh(a[:, 2 * n :] + r * b[:, 2 * n :]) + z * h
        return self.head(h)


class ConvLSTM(nn.Module):
    """A convolutional LSTM over frames."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 8
        self.gates = nn.Conv2d(3 + 8, 32, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _, height, width = x.shape
        h = torch.zeros(b, self.hidden, height, width, dtype=x.dtype)
        c = torch.zeros_like(h)
        for k in range(t):
            i, f, o, g = torch.split(self.gates(torch.cat([x[:, k], h], dim=1)), self.hidden, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


class ConvThenRecurrent(nn.Module):
    """Convolutions over an image, its columns read by a two-way LSTM (text recognition)."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.rnn = nn.LSTM(12 * 4, 10, num_layers=2, bidirectional=True)
        self.head = nn.Linear(20, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.c1(x).relu(), 2)
        x = functional.max_pool2d(self.norm(self.c2(x)).relu(), 2)
        x = x.permute(3, 0, 1, 2).flatten(2)
        return self.head(self.rnn(x)[0]).log_softmax(-1)
