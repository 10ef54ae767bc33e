"""Recurrent networks and audio after public reports."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from reports import image, reported
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


@reported(
    "VainF/Torch-Pruning",
    276,
    "one LSTM whose normalised state is the output: nothing can go, and that is said",
    image(9, 10),
    expected="refused: Nothing in this network",
)
class LstmIsOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.ln1 = nn.LSTM(10, 24, 1, batch_first=True), nn.LayerNorm(24)

    def forward(self, x):
        return self.ln1(self.lstm(x)[0])


class OpenGru(nn.Module):
    def __init__(self, inputs, hidden):
        super().__init__()
        self.hidden_size = hidden
        self.w_ir, self.w_iz, self.w_in = (nn.Linear(inputs, hidden) for _ in range(3))
        self.w_hr, self.w_hz, self.w_hn = (nn.Linear(hidden, hidden) for _ in range(3))
        self.h_map = nn.Identity()

    def forward(self, x, h=None):
        h = torch.zeros(x.shape[0], self.hidden_size, dtype=x.dtype) if h is None else h
        outputs = []
        for t in range(x.shape[1]):
            step = x[:, t]
            r = torch.sigmoid(self.w_ir(step) + self.w_hr(h))
            z = torch.sigmoid(self.w_iz(step) + self.w_hz(h))
            n = torch.tanh(self.w_in(step) + r * self.w_hn(h))
            h = self.h_map(n + z * (h - n))
            outputs.append(h)
        return torch.stack(outputs, 1), h


@reported("VainF/Torch-Pruning", 515, "a GRU written out in linear layers, looped over time", image(5, 8))
class GruWrittenOut(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru1, self.gru2, self.fc = OpenGru(8, 20), OpenGru(20, 16), nn.Linear(16, 4)

    def forward(self, x):
        x, _ = self.gru1(x)
        _, h = self.gru2(x)
        return self.fc(h)


@reported(
    "VainF/Torch-Pruning", 366, "a gate without parameters halves the channels between two convolutions", image(12, 40)
)
class GatedConvolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv1d(12, 32, 3, padding=1), nn.GLU(1), nn.Conv1d(16, 48, 3, padding=2, dilation=2), nn.GLU(dim=-2),
            nn.Conv1d(24, 6, 1),
        )  # fmt: skip

    def forward(self, x):
        return self.layer(x)


@reported(
    "fatchord/WaveRNN",
    30,
    "a recurrent state of two halves, which see different inputs and feed different outputs",
    lambda n: (torch.randn(n, 4, 2), torch.randn(n, 4, 1)),
    least=0.05,
)
class WaveRnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden_size, self.split_size = 24, 12
        self.R = nn.Linear(24, 72, bias=False)
        self.O1, self.O2, self.O3, self.O4 = nn.Linear(12, 16), nn.Linear(16, 8), nn.Linear(12, 16), nn.Linear(16, 8)
        self.I_coarse, self.I_fine = nn.Linear(2, 36, bias=False), nn.Linear(3, 36, bias=False)
        self.bias_u, self.bias_r, self.bias_e = (nn.Parameter(torch.zeros(24)) for _ in range(3))

    def forward(self, before, current):
        hidden = torch.zeros(before.shape[0], self.hidden_size, dtype=before.dtype)
        coarse_out, fine_out = [], []
        for t in range(before.shape[1]):
            r_u, r_r, r_e = torch.split(self.R(hidden), self.hidden_size, dim=1)
            coarse = self.I_coarse(before[:, t])
            fine = self.I_fine(torch.cat([before[:, t], current[:, t]], dim=1))
            cu, cr, ce = torch.split(coarse, self.split_size, dim=1)
            fu, fr, fe = torch.split(fine, self.split_size, dim=1)
            u = torch.sigmoid(r_u + torch.cat([cu, fu], dim=1) + self.bias_u)
            r = torch.sigmoid(r_r + torch.cat([cr, fr], dim=1) + self.bias_r)
            e = torch.tanh(r * r_e + torch.cat([ce, fe], dim=1) + self.bias_e)
            hidden = u * hidden + (1.0 - u) * e
            h_coarse, h_fine = torch.split(hidden, self.split_size, dim=1)
            coarse_out.append(self.O2(F.relu(self.O1(h_coarse))))
            fine_out.append(self.O4(F.relu(self.O3(h_fine))))
        return torch.stack(coarse_out, 1), torch.stack(fine_out, 1), hidden


@reported(
    "microsoft/nni", 4955, "columns of a map become steps of two recurrent layers in both directions", image(1, 16, 40)
)
class Crnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(12, 20, 3, padding=1),
            nn.BatchNorm2d(20),
            nn.ReLU(True), nn.MaxPool2d((2, 2), (2, 1), (0, 1)), nn.Conv2d(20, 24, (4, 2)), nn.ReLU(True),
        )  # fmt: skip
        self.rnn1, self.embed1 = nn.LSTM(24, 16, bidirectional=True), nn.Linear(32, 16)
        self.rnn2, self.embed2 = nn.LSTM(16, 16, bidirectional=True), nn.Linear(32, 11)

    def forward(self, x):
        conv = self.cnn(x)
        if conv.size(2) != 1:
            raise ValueError("the height of the map must be 1")
        conv = conv.squeeze(2).permute(2, 0, 1)
        for rnn, embed in ((self.rnn1, self.embed1), (self.rnn2, self.embed2)):
            recurrent, _ = rnn(conv)
            t, b, h = recurrent.size()
            conv = embed(recurrent.view(t * b, h)).view(t, b, -1)
        return F.log_softmax(conv, dim=2)


@reported(
    "openvinotoolkit/nncf", 1784, "normalised weights of a grouped convolution of positions, cut at one end", image(400)
)
class WavePositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.group_norm = nn.Conv1d(1, 16, 10, 5, bias=False), nn.GroupNorm(16, 16)
        self.conv2, self.norm, self.project = nn.Conv1d(16, 16, 3, 2, bias=False), nn.LayerNorm(16), nn.Linear(16, 24)
        self.pos = weight_norm(nn.Conv1d(24, 24, 8, padding=4, groups=4), name="weight", dim=2)
        self.q, self.k, self.v, self.out = (nn.Linear(24, 24) for _ in range(4))
        self.heads, self.last = 4, nn.LayerNorm(24)
        self.fc1, self.fc2, self.head = nn.Linear(24, 48), nn.Linear(48, 24), nn.Linear(24, 12)

    def forward(self, wave):
        x = F.gelu(self.group_norm(self.conv1(wave[:, None])))
        x = self.project(self.norm(F.gelu(self.conv2(x)).transpose(1, 2)))
        place = self.pos(x.transpose(1, 2))
        x = x + F.gelu(place[:, :, :-1]).transpose(1, 2)
        b, n, c = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return self.head(self.last(x + self.fc2(F.gelu(self.fc1(x)))))


@reported(
    "pytorch/audio",
    920,
    "a mask over learned filters for every speaker; skips of dilated layers summed",
    image(1, 128),
    expected="cut rebuilt",
)
class ConvTasNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_sources, self.enc_num_feats, self.enc_kernel_size, self.enc_stride = 2, 16, 8, 4
        self.encoder = nn.Conv1d(1, 16, 8, stride=4, padding=4, bias=False)
        self.input_norm, self.input_conv = nn.GroupNorm(1, 16, eps=1e-8), nn.Conv1d(16, 12, 1)
        self.layers, self.res, self.skip = (nn.ModuleList() for _ in range(3))
        for i in range(2):
            self.layers.append(
                nn.Sequential(
                    nn.Conv1d(12, 24, 1),
                    nn.PReLU(),
                    nn.GroupNorm(1, 24, eps=1e-8),
                    nn.Conv1d(24, 24, 3, padding=2**i, dilation=2**i, groups=24),
                    nn.PReLU(),
                    nn.GroupNorm(1, 24, eps=1e-8),
                )
            )
            self.res.append(nn.Conv1d(24, 12, 1))
            self.skip.append(nn.Conv1d(24, 12, 1))
        self.prelu, self.out = nn.PReLU(), nn.Conv1d(12, 2 * 16, 1)
        self.decoder = nn.ConvTranspose1d(16, 1, 8, stride=4, padding=4, bias=False)

    def forward(self, wave):
        batch, frames = wave.shape[0], wave.shape[2]
        stride = self.enc_kernel_size // 2
        pad = 0 if frames % stride == 0 else stride - frames % stride
        feats = self.encoder(F.pad(wave, (0, pad)))
        x, total = self.input_conv(self.input_norm(feats)), 0.0
        for layer, res, skip in zip(self.layers, self.res, self.skip, strict=True):
            y = layer(x)
            x, total = x + res(y), total + skip(y)
        mask = torch.sigmoid(self.out(self.prelu(total))).view(batch, self.num_sources, self.enc_num_feats, -1)
        masked = (mask * feats.unsqueeze(1)).view(batch * self.num_sources, self.enc_num_feats, -1)
        decoded = self.decoder(masked).view(batch, self.num_sources, -1)
        return decoded[..., :frames]


@reported("pytorch/pytorch", 135087, "a spectrogram computed in the forward, in complex numbers", image(800))
class SpectrogramFront(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.bands = nn.Linear(33, 16, bias=False)
        self.conv = nn.Sequential(
            nn.Conv1d(16, 24, 3, padding=1), nn.BatchNorm1d(24), nn.ReLU(), nn.Conv1d(24, 20, 3, padding=1)
        )
        self.head = nn.Linear(40, 6)

    def forward(self, wave):
        spectrum = torch.stft(wave, 64, 32, window=self.window, center=True, return_complex=True, pad_mode="constant")
        power = spectrum.real.pow(2) + spectrum.imag.pow(2)
        x = torch.log1p(self.bands(power.transpose(1, 2)).abs()).transpose(1, 2)
        x = F.relu(self.conv(x))
        return self.head(torch.cat([x.mean(dim=2), x.std(dim=2)], dim=1))


class GatedStack(nn.Module):
    def __init__(self, hidden, layers):
        super().__init__()
        self.hidden_channels, self.n_layers = hidden, layers
        self.in_layers, self.res_skip_layers = nn.ModuleList(), nn.ModuleList()
        for i in range(layers):
            self.in_layers.append(weight_norm(nn.Conv1d(hidden, 2 * hidden, 3, padding=1)))
            outputs = 2 * hidden if i < layers - 1 else hidden
            self.res_skip_layers.append(weight_norm(nn.Conv1d(hidden, outputs, 1)))

    def forward(self, x, mask):
        output = torch.zeros_like(x)
        for i in range(self.n_layers):
            n = torch.IntTensor([self.hidden_channels])[0]
            y = self.in_layers[i](x)
            acts = torch.tanh(y[:, :n, :]) * torch.sigmoid(y[:, n:, :])
            acts = self.res_skip_layers[i](acts)
            if i < self.n_layers - 1:
                x = (x + acts[:, : self.hidden_channels, :]) * mask
                output = output + acts[:, self.hidden_channels :, :]
            else:
                output = output + acts
        return output * mask


class Coupling(nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        self.half_channels = channels // 2
        self.pre, self.enc = nn.Conv1d(channels // 2, hidden, 1), GatedStack(hidden, 2)
        self.post = nn.Conv1d(hidden, channels // 2, 1)

    def forward(self, x, mask):
        x0, x1 = torch.split(x, [self.half_channels] * 2, 1)
        m = self.post(self.enc(self.pre(x0) * mask, mask)) * mask
        return torch.flip(torch.cat([x0, (x1 - m) * mask], 1), [1])


@reported(
    "OHF-Voice/piper1-gpl",
    148,
    "flows that split, add and turn over their channels; gates split at a count that is a tensor",
    lambda n: (torch.randn(n, 6, 20), torch.randint(9, 21, (n,))),
)
class VitsFlow(nn.Module):
    def __init__(self):
        super().__init__()
        self.pre, self.flows = nn.Conv1d(6, 12, 1), nn.ModuleList([Coupling(12, 16) for _ in range(2)])
        self.up = nn.ConvTranspose1d(12, 10, 4, 2, 1)
        self.post = nn.Conv1d(10, 1, 7, padding=3, bias=False)

    def forward(self, x, lengths):
        at = torch.arange(x.size(2), dtype=lengths.dtype)
        mask = (at.unsqueeze(0) < lengths.unsqueeze(1)).unsqueeze(1).to(x.dtype)
        z = self.pre(x) * mask
        for flow in reversed(self.flows):
            z = flow(z, mask)
        return torch.tanh(self.post(F.leaky_relu(self.up(F.leaky_relu(z, 0.1)))))
