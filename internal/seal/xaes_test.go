package seal_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha3"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"math/big"
	"os"
	"testing"

	"example.com/keyring/internal/seal"
	"pgregory.net/rapid"
)

// This file is a second implementation of the envelope, written from the package doc, RFC
// 5869 and C2SP's text alone. It shares no code with the package and takes other roads:
// HKDF by hand from HMAC, the CMAC subkey by integer arithmetic, CMAC as AES-CBC, GCM with
// an explicit nonce.
//
// testdata/envelopes.json is made by it, from the inputs in vectors():
//
//	go test ./internal/seal -run TestVectors -update

var update = flag.Bool("update", false, "rewrite testdata/envelopes.json")

// sealingKey is HKDF-SHA256 without a salt, for one block of output.
func sealingKey(root, id []byte) []byte {
	extract := hmac.New(sha256.New, make([]byte, sha256.Size))
	extract.Write(root)
	expand := hmac.New(sha256.New, extract.Sum(nil))
	expand.Write([]byte("keyring v1 seal"))
	expand.Write(id)
	expand.Write([]byte{1})
	return expand.Sum(nil)
}

// xaes returns AES-256-GCM under the key that XAES-256-GCM derives for the nonce's first half.
func xaes(key, nonce []byte) cipher.AEAD {
	block := must(aes.NewCipher(key))
	cbc := func(in []byte) []byte {
		out := make([]byte, 16)
		cipher.NewCBCEncrypter(block, make([]byte, 16)).CryptBlocks(out, in)
		return out
	}
	// K1 is 2L in GF(2^128): shifted left, and reduced by x^128 + x^7 + x^2 + x + 1.
	k1 := new(big.Int).SetBytes(cbc(make([]byte, 16)))
	k1.Lsh(k1, 1)
	if k1.Bit(128) == 1 {
		k1.SetBit(k1, 128, 0)
		k1.Xor(k1, big.NewInt(0x87))
	}
	var kx []byte
	for _, label := range []string{"\x00\x01X\x00", "\x00\x02X\x00"} {
		m := new(big.Int).SetBytes(append([]byte(label), nonce[:12]...))
		kx = append(kx, cbc(m.Xor(m, k1).FillBytes(make([]byte, 16)))...)
	}
	return must(cipher.NewGCM(must(aes.NewCipher(kx))))
}

// sealAside makes an envelope with the given nonce.
func sealAside(root, id, nonce, plaintext, aad []byte) []byte {
	envelope := append([]byte{1}, id...)
	envelope = append(envelope, nonce...)
	return xaes(sealingKey(root, id), nonce).Seal(envelope, nonce[12:], plaintext, aad)
}

// openAside opens an envelope of the key that is named id.
func openAside(root, id, envelope, aad []byte) ([]byte, error) {
	if len(envelope) < 57 || envelope[0] != 1 || !bytes.Equal(envelope[1:17], id) {
		return nil, errors.New("not an envelope of this key")
	}
	nonce := envelope[17:41]
	return xaes(sealingKey(root, id), nonce).Open(nil, nonce[12:], envelope[41:], aad)
}

// TestAsideC2SP checks this file's own XAES against a vector of C2SP.
func TestAsideC2SP(t *testing.T) {
	key, nonce := bytes.Repeat([]byte{3}, 32), []byte("ABCDEFGHIJKLMNOPQRSTUVWX")
	got := xaes(key, nonce).Seal(nil, nonce[12:], []byte("XAES-256-GCM"), []byte("c2sp.org/XAES-256-GCM"))
	if want := "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"; hex.EncodeToString(got) != want {
		t.Errorf("got %x, want %s", got, want)
	}
}

// TestSealOpensAside: what Seal makes, any XAES opens without the first 17 bytes. What
// this one makes, Open opens.
func TestSealOpensAside(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		root, id := drawBytes(t, "root", 32), drawBytes(t, "id", 16)
		plaintext := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "plaintext")
		aad := rapid.SliceOfN(rapid.Byte(), 0, 60).Draw(t, "aad")
		key := must(seal.New((*[32]byte)(root), [16]byte(id)))

		envelope := must(key.Seal(nil, plaintext, aad))
		if len(envelope) != len(plaintext)+seal.Overhead {
			t.Fatalf("%d bytes for %d", len(envelope), len(plaintext))
		}
		stripped := envelope[17:]
		nonce := stripped[:24]
		got, err := xaes(sealingKey(root, id), nonce).Open(nil, nonce[12:], stripped[24:], aad)
		if err != nil || !bytes.Equal(got, plaintext) {
			t.Fatalf("XAES opens Seal's to %x, %v", got, err)
		}

		envelope = sealAside(root, id, drawBytes(t, "nonce", 24), plaintext, aad)
		got, err = key.Open(nil, envelope, aad)
		if err != nil || !bytes.Equal(got, plaintext) {
			t.Fatalf("Open opens XAES's to %x, %v", got, err)
		}
	})
}

// A vector is one line of testdata/envelopes.json.
type vector struct {
	Comment    string
	Root       hexBytes // root key
	ID         hexBytes // key ID
	SealingKey hexBytes // HKDF's output, the XAES key
	Nonce      hexBytes // N1 || N2
	Plaintext  hexBytes
	AAD        hexBytes
	Envelope   hexBytes
}

// vectors makes the vectors. Keys and nonces are the stream of SHAKE128 over a fixed seed.
func vectors() []vector {
	stream := sha3.NewSHAKE128()
	stream.Write([]byte("keyring envelope vectors"))
	next := func(n int) []byte {
		b := make([]byte, n)
		stream.Read(b)
		return b
	}
	var all []vector
	for _, v := range []vector{
		{Comment: "nothing at all"},
		{Comment: "no plaintext", AAD: []byte("tenant/4711")},
		{Comment: "no AAD", Plaintext: []byte("attack at dawn")},
		{Comment: "both", Plaintext: []byte("attack at dawn"), AAD: []byte("tenant/4711")},
		{Comment: "a block", Plaintext: next(16), AAD: next(16)},
		{Comment: "blocks and a rest", Plaintext: next(1000), AAD: next(33)},
	} {
		v.Root, v.ID, v.Nonce = next(32), next(16), next(24)
		v.SealingKey = sealingKey(v.Root, v.ID)
		v.Envelope = sealAside(v.Root, v.ID, v.Nonce, v.Plaintext, v.AAD)
		all = append(all, v)
	}
	return all
}

func TestVectors(t *testing.T) {
	const path = "testdata/envelopes.json"
	made := append(must(json.MarshalIndent(vectors(), "", "\t")), '\n')
	if *update {
		if err := os.WriteFile(path, made, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if stored := must(os.ReadFile(path)); !bytes.Equal(stored, made) {
		t.Errorf("%s is not what this file makes", path)
	}
	checkVectors(t)
}

// checkVectors opens the stored vectors with the package.
func checkVectors(t *testing.T) {
	t.Helper()
	var all []vector
	if err := json.Unmarshal(must(os.ReadFile("testdata/envelopes.json")), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range all {
		key := mustNew(t, [32]byte(v.Root), [16]byte(v.ID))
		got, err := key.Open(nil, v.Envelope, v.AAD)
		if err != nil || !bytes.Equal(got, v.Plaintext) {
			t.Errorf("%s: got %x, %v", v.Comment, got, err)
		}
	}
}

// hexBytes is hex in JSON.
type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.AppendDecode(nil, text)
	return err
}

func drawBytes(t *rapid.T, label string, n int) []byte {
	return rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, label)
}

// must is for what can't fail with the inputs of a test.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
