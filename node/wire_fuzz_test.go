package node_test

import (
	"errors"
	"strings"
	"testing"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/bounded/boundedtest"
	"example.com/keyring/node"
)

// fuzzKind tries what another server may send for the kind: it may cost a part for all, and so much for each
// byte of it.
func fuzzKind(f *testing.F, kind string, seeds ...string) {
	for _, s := range append(seeds, "{}", "null", `{"new":[{"a":"\"]"}]}`) {
		f.Add([]byte(s))
	}
	decode := node.Decoders[kind]
	f.Fuzz(func(t *testing.T, b []byte) {
		boundedtest.Memory(t, len(b), 64<<10, 16, func() { decode(b) })
	})
}

func FuzzRotateRequest(f *testing.F) {
	fuzzKind(f, "rotate", `{"By":"ann","Publish":"0001-01-01T00:00:00Z","Full":true,"Revoke":["00112233-4455-6677-8899-aabbccddeeff"]}`)
}

func FuzzRemoveRequest(f *testing.F) {
	fuzzKind(f, "remove", `{"By":"ann","ID":"00112233-4455-6677-8899-aabbccddeeff","Force":true,"Now":false}`)
}

func FuzzAddServerRequest(f *testing.F) {
	fuzzKind(f, "add server", `{"By":"ann","ID":"s4","Addr":"127.0.0.1:7900"}`)
}

func FuzzRemoveServerRequest(f *testing.F) {
	fuzzKind(f, "remove server", `{"By":"ann","ID":"s4","Force":true}`)
}

func FuzzJoinTokenRequest(f *testing.F) {
	fuzzKind(f, "join token", `{"ID":"s4","TTL":3600000000000}`)
}

func FuzzWithdrawRequest(f *testing.F) {
	fuzzKind(f, "withdraw", `{"By":"ann","ID":"000102030405060708090a0b0c0d0e0f"}`)
}

func FuzzAdoptRequest(f *testing.F) {
	fuzzKind(f, "adopt", `{"By":"ann","ID":"00112233-4455-6677-8899-aabbccddeeff"}`)
}

func FuzzConfirmRequest(f *testing.F) {
	fuzzKind(f, "confirm", `{"By":"ann","SHA256":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}`)
}

func FuzzForwardedAnswer(f *testing.F) {
	fuzzKind(f, "answer", "\x00sealed", "\x01not the leader", "\x05", "\xffsome error")
}

// TestRequestsCostNoMoreThanTheirBounds: a few bytes that stand for many elements are refused before these are there.
func TestRequestsCostNoMoreThanTheirBounds(t *testing.T) {
	b := []byte(`{"Revoke":[null` + strings.Repeat(`,null`, 200_000) + `]}`)
	boundedtest.Memory(t, len(b), 1<<20, 5*64, func() {
		if err := node.Decoders["rotate"](b); !errors.Is(err, bounded.ErrBound) {
			t.Error(err)
		}
	})
}

func FuzzVoteRequest(f *testing.F) {
	fuzzKind(f, "vote", `{"By":"ann","ID":"s4"}`)
}
