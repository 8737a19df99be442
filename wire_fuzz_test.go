package keyring_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/bounded/boundedtest"
)

// fuzzKind tries what another server may send for the kind: it may cost a part for all, and so much for each
// byte of it.
func fuzzKind(f *testing.F, kind string, seeds ...string) {
	for _, s := range append(seeds, "{}", "null", `{"new":[{"a":"\"]"}]}`) {
		f.Add([]byte(s))
	}
	decode := keyring.Decoders[kind]
	f.Fuzz(func(t *testing.T, b []byte) {
		boundedtest.Memory(t, len(b), 64<<10, 16, func() { decode(b) })
	})
}

func FuzzGreeting(f *testing.F) {
	fuzzKind(f, "greeting", `{"founded":true,"leader":"127.0.0.1:7900","addr":"[::1]:7900"}`)
}

func FuzzPlace(f *testing.F) { fuzzKind(f, "place", `{"addr":"127.0.0.1:7900"}`) }

func FuzzJoining(f *testing.F) {
	fuzzKind(f, "joining", `{"addr":"127.0.0.1:7900","token":"AQEBAQ"}`,
		`{"addr":"127.0.0.1:7900","id":"000102030405060708090a0b0c0d0e0f","proof":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}`)
}

func FuzzJoined(f *testing.F) {
	fuzzKind(f, "joined", `{"servers":["s1","s2","s3"]}`, `{"servers":[null,""]}`)
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

func FuzzProving(f *testing.F) {
	fuzzKind(f, "proving", `{"token":"000102030405060708090a0b0c0d0e0f","addr":"127.0.0.1:7900"}`)
}

func FuzzProof(f *testing.F) {
	fuzzKind(f, "proof", `{"proof":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}`)
}

func FuzzJoinTokenRequest(f *testing.F) {
	fuzzKind(f, "join token", `{"ID":"s4","TTL":3600000000000}`)
}

func FuzzWithdrawRequest(f *testing.F) {
	fuzzKind(f, "withdraw", `{"By":"ann","ID":"000102030405060708090a0b0c0d0e0f"}`)
}

func FuzzForwardedAnswer(f *testing.F) {
	fuzzKind(f, "answer", "\x00sealed", "\x01not the leader", "\x05", "\xffsome error")
}

// FuzzStatusAnswer tries what was compressed, and texts that are compressed themselves: what it costs follows
// what arrived, at most 64 bytes of text for each.
func FuzzStatusAnswer(f *testing.F) {
	f.Add([]byte(`{"id":"s1","servers":[{"Suffrage":0,"ID":"s1","Address":"a"}],"keys":null,"problems":[{"kind":"no voter","detail":"d"}]}`))
	f.Add([]byte(`{"missing":["00112233-4455-6677-8899-aabbccddeeff"],"rekeying":[{"key":"00112233-4455-6677-8899-aabbccddeeff"}]}`))
	f.Add([]byte(manyHolders(30, 1000)))
	f.Add(padded(manyHolders(340, 32_768)))
	f.Fuzz(func(t *testing.T, text []byte) {
		b := compressed(string(text))
		boundedtest.Memory(t, len(b), 256<<10, 64*24, func() { keyring.Decoders["status"](b) })
		boundedtest.Memory(t, len(text), 256<<10, 64*24, func() { keyring.Decoders["status"](text) })
	})
}

// manyHolders is a Status whose keys have holders without names.
func manyHolders(keys, holders int) string {
	key := `{"heldBy":[""` + strings.Repeat(`,""`, holders-1) + `]}`
	return `{"keys":[` + key + strings.Repeat(","+key, keys-1) + `]}`
}

// padded compresses text, and has so many empty members of gzip's follow that it seems to shrink by little.
func padded(text string) []byte {
	b, empty := compressed(text), compressed("")
	return append(b, bytes.Repeat(empty, len(text)/64/len(empty)+1)...)
}

// TestStatusCostsWhatArrived: lists within lists multiply, and what follows the compressed text makes no room.
func TestStatusCostsWhatArrived(t *testing.T) {
	b := padded(manyHolders(340, 32_768))
	boundedtest.Memory(t, len(b), 1<<20, 5*64, func() {
		if err := keyring.Decoders["status"](b); err == nil {
			t.Error("what follows is taken")
		}
	})
	keys := compressed(manyHolders(2, 10_000))
	boundedtest.Memory(t, len(keys), 512<<10, 64, func() {
		if err := keyring.Decoders["status"](keys); err != nil {
			t.Error(err)
		}
	})
	refs := `{"rekeying":[` + strings.Repeat(manyRefs+",", 340) + manyRefs + `]}`
	if _, err := keyring.DecodeStatus([]byte(refs)); !errors.Is(err, bounded.ErrBound) {
		t.Errorf("lists within lists: %v", err)
	}
}

var manyRefs = `{"poisonedRefs":[""` + strings.Repeat(`,""`, 10_000) + `]}`

func compressed(text string) []byte {
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
	io.WriteString(z, text)
	z.Close()
	return b.Bytes()
}

// TestAnswersCostNoMoreThanTheirBounds: a few bytes that stand for millions of elements are refused before
// these are there.
func TestAnswersCostNoMoreThanTheirBounds(t *testing.T) {
	const many = 340_000
	for kind, text := range map[string]string{
		"status": string(compressed(`{"problems":[{}` + strings.Repeat(",{}", 11_000_000) + `]}`)),
		"joined": `{"servers":[""` + strings.Repeat(`,""`, many) + `]}`,
		"rotate": `{"Revoke":[null` + strings.Repeat(`,null`, 200_000) + `]}`,
	} {
		b := []byte(text)
		boundedtest.Memory(t, len(b), 1<<20, 5*64, func() {
			if err := keyring.Decoders[kind](b); !errors.Is(err, bounded.ErrBound) {
				t.Errorf("%s: %v", kind, err)
			}
		})
	}
	var list strings.Builder
	for range 32_768 {
		fmt.Fprintf(&list, `,{"key":%q}`, keyring.NewKeyID())
	}
	most := compressed(`{"problems":[` + list.String()[1:] + `]}`)
	boundedtest.Memory(t, len(most), 1<<20, 64, func() {
		if err := keyring.Decoders["status"](most); err != nil {
			t.Error(err)
		}
	})
	if _, err := keyring.Answered(append([]byte{0xff}, strings.Repeat("x", 1<<20)...)); len(err.Error()) > 5000 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}
