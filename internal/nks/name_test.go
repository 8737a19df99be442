package nks_test

import (
	"encoding/hex"
	"testing"

	"pgregory.net/rapid"

	"example.com/keyring/internal/nks"
)

func TestFileNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		name := nks.FileName(id)
		h := hex.EncodeToString(id[:])
		if want := h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:] + ".nks.json"; name != want {
			t.Fatalf("%s, want %s", name, want)
		}
		if back, ok := nks.ParseFileName(name); !ok || back != id {
			t.Fatalf("%s: %x, %v", name, back, ok)
		}
	})
}

func TestParseFileNameIsStrict(t *testing.T) {
	for _, name := range []string{
		"", ".nks.json", "aabbccdd-0011-2233-4455-66778899aabb",
		"AABBCCDD-0011-2233-4455-66778899AABB.nks.json",
		"aabbccdd-0011-2233-4455-66778899aabb.NKS.JSON",
		"aabbccdd-0011-2233-4455-66778899aabb.json",
		"aabbccdd-0011-2233-4455-66778899aabb.nks.json.tmp",
		"aabbccdd-0011-2233-4455-66778899aabb.nks.json.nks.json",
		"./aabbccdd-0011-2233-4455-66778899aabb.nks.json",
		" aabbccdd-0011-2233-4455-66778899aabb.nks.json",
		"{aabbccdd-0011-2233-4455-66778899aabb}.nks.json",
		"aabbccdd00112233445566778899aabb.nks.json",
		"aabbccdd-0011-2233-44556-6778899aabb.nks.json",
		"aabbccdd-0011-2233-4455--66778899aab.nks.json",
		"aabbccdd-0011-2233-4455-66778899aab.nks.json",
		"aabbccdd-0011-2233-4455-66778899aabbc.nks.json",
		"aabbccdd-0011-2233-4455-66778899aabbcc.nks.json",
		"gabbccdd-0011-2233-4455-66778899aabb.nks.json",
		"aabbccdd-0011-2233-4455-66778899aabb.aead.nks.json",
	} {
		if id, ok := nks.ParseFileName(name); ok || id != [16]byte{} {
			t.Errorf("%q: %x, %v", name, id, ok)
		}
	}
}
