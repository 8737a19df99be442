package keyring_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/bounded/boundedtest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
)

func decodeStatus(b []byte) error { _, err := keyring.UnpackStatus(b); return err }

// FuzzStatusAnswer tries what was compressed, and texts that are compressed themselves: what it costs follows
// what arrived, at most 64 bytes of text for each.
func FuzzStatusAnswer(f *testing.F) {
	f.Add([]byte(`{"id":"s1","servers":[{"Suffrage":0,"ID":"s1","Address":"a"}],"keys":null,"problems":[{"kind":"no voter","detail":"d"}]}`))
	f.Add([]byte(`{"missing":["00112233-4455-6677-8899-aabbccddeeff"],"rekeying":[{"key":"00112233-4455-6677-8899-aabbccddeeff"}]}`))
	f.Add([]byte(manyHolders(30, 1000)))
	f.Add(padded(manyHolders(340, 32_768)))
	f.Fuzz(func(t *testing.T, text []byte) {
		b := compressed(string(text))
		boundedtest.Memory(t, len(b), 256<<10, 64*24, func() { decodeStatus(b) })
		boundedtest.Memory(t, len(text), 256<<10, 64*24, func() { decodeStatus(text) })
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

// TestStatusCostsWhatWasReceived: lists within lists multiply, and what follows the compressed text makes no room.
func TestStatusCostsWhatWasReceived(t *testing.T) {
	b := padded(manyHolders(340, 32_768))
	boundedtest.Memory(t, len(b), 1<<20, 5*64, func() {
		if err := decodeStatus(b); err == nil {
			t.Error("what follows is taken")
		}
	})
	keys := compressed(manyHolders(2, 10_000))
	boundedtest.Memory(t, len(keys), 512<<10, 64, func() {
		if err := decodeStatus(keys); err != nil {
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

// TestStatusCostsNoMoreThanItsBounds: a few bytes that stand for millions of elements are refused before
// these are there.
func TestStatusCostsNoMoreThanItsBounds(t *testing.T) {
	problems := compressed(`{"problems":[{}` + strings.Repeat(",{}", 11_000_000) + `]}`)
	boundedtest.Memory(t, len(problems), 1<<20, 5*64, func() {
		if err := decodeStatus(problems); !errors.Is(err, bounded.ErrBound) {
			t.Error(err)
		}
	})
	var list strings.Builder
	for range 32_768 {
		fmt.Fprintf(&list, `,{"key":%q}`, keyringtest.NewKeyID())
	}
	most := compressed(`{"problems":[` + list.String()[1:] + `]}`)
	boundedtest.Memory(t, len(most), 1<<20, 64, func() {
		if err := decodeStatus(most); err != nil {
			t.Error(err)
		}
	})
}

// TestLargeStatusTravels: that of a server which lacks 10,000 keys.
func TestLargeStatusTravels(t *testing.T) {
	var st keyring.Status
	for range 10_000 {
		st.Missing = append(st.Missing, keyringtest.NewKeyID())
	}
	slices.SortFunc(st.Missing, func(a, b keyring.KeyID) int { return bytes.Compare(a[:], b[:]) })
	st.Problems = []keyring.Problem{{
		Kind: keyring.ProblemKeyMissing, Severity: keyring.SeverityCritical, Keys: st.Missing,
		Detail: "being fetched from the other servers", Advice: "Nothing, if another server has it. Else bring its file back.",
	}}
	b, err := keyring.PackStatus(st)
	if err != nil || len(b) > node.MaxForward/2 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	got, err := keyring.UnpackStatus(b)
	if err != nil || !reflect.DeepEqual(got.Missing, st.Missing) || !reflect.DeepEqual(got.Problems, st.Problems) {
		t.Error("it is another one", err)
	}
	if _, err := keyring.UnpackStatus(b[:len(b)-20]); err == nil {
		t.Error("it is taken when it is cut")
	}
}
