package port_test

import (
	"errors"
	"strings"
	"testing"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/bounded/boundedtest"
	"example.com/keyring/internal/port"
)

// fuzzKind tries what another server may send for the kind: it may cost a part for all, and so much for each
// byte of it.
func fuzzKind(f *testing.F, kind string, seeds ...string) {
	for _, s := range append(seeds, "{}", "null", `{"new":[{"a":"\"]"}]}`) {
		f.Add([]byte(s))
	}
	decode := port.Decoders[kind]
	f.Fuzz(func(t *testing.T, b []byte) {
		boundedtest.Memory(t, len(b), 64<<10, 16, func() { decode(b) })
	})
}

func FuzzHello(f *testing.F) {
	fuzzKind(f, "hello", `{"founded":true,"leader":"127.0.0.1:7900","addr":"[::1]:7900"}`)
}

func FuzzPlace(f *testing.F) { fuzzKind(f, "place", `{"addr":"127.0.0.1:7900"}`) }

func FuzzJoining(f *testing.F) {
	fuzzKind(f, "joining", `{"addr":"127.0.0.1:7900","token":"AQEBAQ"}`,
		`{"addr":"127.0.0.1:7900","id":"000102030405060708090a0b0c0d0e0f","proof":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}`)
}

func FuzzJoined(f *testing.F) {
	fuzzKind(f, "joined", `{"servers":["s1","s2","s3"]}`, `{"servers":[null,""]}`)
}

func FuzzProving(f *testing.F) {
	fuzzKind(f, "proving", `{"token":"000102030405060708090a0b0c0d0e0f","addr":"127.0.0.1:7900"}`)
}

func FuzzProof(f *testing.F) {
	fuzzKind(f, "proof", `{"proof":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}`)
}

// TestAnswersCostNoMoreThanTheirBounds: a few bytes that stand for millions of elements are refused before
// these are there.
func TestAnswersCostNoMoreThanTheirBounds(t *testing.T) {
	b := []byte(`{"servers":[""` + strings.Repeat(`,""`, 340_000) + `]}`)
	boundedtest.Memory(t, len(b), 1<<20, 5*64, func() {
		if err := port.Decoders["joined"](b); !errors.Is(err, bounded.ErrBound) {
			t.Error(err)
		}
	})
	if _, err := (port.ErrorCodes{}).DecodeReply(append([]byte{0xff}, strings.Repeat("x", 1<<20)...)); len(err.Error()) > 5000 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}
