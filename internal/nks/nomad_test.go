package nks_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"example.com/keyring/internal/nks"
)

// nomadFile is a file in testdata/nomad, and nomadKey the key in it.
type (
	nomadFile struct {
		By, File, ID string
		CreatedNanos int64
		Provider     string
		Inline       bool

		Text []byte   `json:"-"`
		Key  nomadKey `json:"-"`
	}
	nomadKey struct {
		ID, Algorithm         string
		Root, Signing, Public hexBytes
		Data                  []struct{ Plaintext, Ciphertext hexBytes }
		Token                 string
	}
)

func nomadFiles(t testing.TB) []nomadFile {
	t.Helper()
	var vs struct {
		Files []nomadFile
		Keys  []nomadKey
	}
	if err := json.Unmarshal(read(t, "nomad/vectors.json"), &vs); err != nil {
		t.Fatal(err)
	}
	keys := map[string]nomadKey{}
	for _, k := range vs.Keys {
		keys[k.ID] = k
	}
	if len(vs.Files) == 0 || len(keys) == 0 {
		t.Fatal("no vectors")
	}
	for i, f := range vs.Files {
		vs.Files[i].Text = read(t, "nomad/"+f.File)
		vs.Files[i].Key = keys[f.ID]
	}
	return vs.Files
}

// inlineNomad is those files that open.
func inlineNomad(t testing.TB) (fs []nomadFile) {
	t.Helper()
	for _, f := range nomadFiles(t) {
		if f.Inline {
			fs = append(fs, f)
		}
	}
	return fs
}

func (f *nomadFile) id() (id [16]byte) {
	hex.Decode(id[:], []byte(strings.ReplaceAll(f.ID, "-", "")))
	return id
}

func (f *nomadFile) decode(t testing.TB) *nks.Nomad {
	t.Helper()
	n, err := nks.DecodeNomad(f.Text)
	if err != nil {
		t.Fatalf("%s: %v", f.File, err)
	}
	return n
}

func (f *nomadFile) open(t testing.TB) (*nks.Material, string) {
	t.Helper()
	m, algorithm, err := f.decode(t).Open()
	if err != nil {
		t.Fatalf("%s: %v", f.File, err)
	}
	return m, algorithm
}

func TestNomadVectors(t *testing.T) {
	for _, f := range nomadFiles(t) {
		n := f.decode(t)
		if n.ID != f.id() || n.Provider != f.Provider || n.Inline() != f.Inline {
			t.Errorf("%s decodes into %v", f.File, n)
		}
		if !n.Created.Equal(time.Unix(0, f.CreatedNanos)) || n.Created.Location() != time.UTC {
			t.Errorf("%s: created at %v", f.File, n.Created)
		}
		if id, ok := nks.ParseNomadName(f.File); !ok || id != n.ID {
			t.Errorf("%s: name is of %x, %v", f.File, id, ok)
		}
		if !nks.IsNomad(f.Text) {
			t.Errorf("%s: not taken for Nomad's", f.File)
		}
	}
}

func TestNomadOpensToTheKey(t *testing.T) {
	for _, f := range inlineNomad(t) {
		m, algorithm := f.open(t)
		if algorithm != f.Key.Algorithm {
			t.Errorf("%s: %s", f.File, algorithm)
		}
		equal(t, "root", m.Root()[:], f.Key.Root)
		equal(t, "signing", m.Signing(), f.Key.Signing)
		public, err := m.Public(algorithm)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "public", public, f.Key.Public)
		back, err := nks.Decode(m.Encode())
		if err != nil || !same(m, back) {
			t.Errorf("%s: does not survive encoding: %v", f.File, err)
		}
	}
}

func TestNomadFilesOfOneKeyGiveOneCheckValue(t *testing.T) {
	checks := map[string][32]byte{}
	again := 0
	for _, f := range inlineNomad(t) {
		m, algorithm := f.open(t)
		check := m.Check(f.id(), algorithm)
		if before, seen := checks[f.ID]; seen {
			again++
			if before != check {
				t.Errorf("%s: another check value than in a file before", f.File)
			}
		}
		checks[f.ID] = check
	}
	if again < 2 {
		t.Errorf("only %d keys have a second file", again)
	}
}

func TestNomadOfAnExternalKMSIsNamed(t *testing.T) {
	closed := 0
	for _, f := range nomadFiles(t) {
		if f.Inline {
			continue
		}
		closed++
		m, algorithm, err := f.decode(t).Open()
		if !errors.Is(err, nks.ErrNomadProvider) || errors.Is(err, nks.ErrFormat) || m != nil || algorithm != "" {
			t.Errorf("%s: %v, %q, %v", f.File, m, algorithm, err)
		}
		if !strings.Contains(err.Error(), `"`+f.Provider+`"`) {
			t.Errorf("%s: not named in %v", f.File, err)
		}
	}
	if closed == 0 {
		t.Error("no file of an external KMS")
	}
}

// TestNomadTokensVerify checks the signatures of tokens that Nomad's key made.
func TestNomadTokensVerify(t *testing.T) {
	for _, f := range inlineNomad(t) {
		m, algorithm := f.open(t)
		der, err := m.Public(algorithm)
		if err != nil {
			t.Fatal(err)
		}
		if !verifies(t, der, f.Key.Token) {
			t.Errorf("%s: token does not verify", f.File)
		}
		if verifies(t, der, strings.Replace(f.Key.Token, ".", ".e", 1)) {
			t.Errorf("%s: an altered token verifies", f.File)
		}
	}
}

func verifies(t *testing.T, public []byte, token string) bool {
	t.Helper()
	dot := strings.LastIndexByte(token, '.')
	signature, err := base64.RawURLEncoding.DecodeString(token[dot+1:])
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	switch key := key.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(key, []byte(token[:dot]), signature)
	case *rsa.PublicKey:
		sum := sha256.Sum256([]byte(token[:dot]))
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], signature) == nil
	}
	t.Fatalf("a key of type %T", key)
	return false
}

func TestNomadDataOpens(t *testing.T) {
	for _, f := range inlineNomad(t) {
		m, _ := f.open(t)
		for _, d := range f.Key.Data {
			sealed := bytes.Clone(d.Ciphertext)
			plaintext, err := nks.OpenNomadData(m.Root(), f.id(), sealed)
			if err != nil {
				t.Fatalf("%s: %v", f.File, err)
			}
			equal(t, "plaintext", plaintext, d.Plaintext)
			equal(t, "the ciphertext afterwards", sealed, d.Ciphertext)
		}
	}
}

// TestNomadDataHasOneError tries every prefix, every flip, another ID and another key.
func TestNomadDataHasOneError(t *testing.T) {
	fs := inlineNomad(t)
	root, other := [32]byte(fs[0].Key.Root), [32]byte(fs[1].Key.Root)
	id, sealed := fs[0].id(), fs[0].Key.Data[2].Ciphertext
	_, want := nks.OpenNomadData(&root, id, nil)
	if want == nil {
		t.Fatal("nothing at all opens")
	}
	refused := func(what string, root *[32]byte, id [16]byte, data []byte) {
		if got, err := nks.OpenNomadData(root, id, data); got != nil || err != want {
			t.Errorf("%s: %x, %v", what, got, err)
		}
	}
	for n := range sealed {
		refused("a prefix", &root, id, sealed[:n])
	}
	for i := range len(sealed) * 8 {
		refused("a flip", &root, id, flipped(sealed, i))
	}
	for i := range 128 {
		refused("another ID", &root, [16]byte(flipped(id[:], i)), sealed)
	}
	refused("another key", &other, id, sealed)
	refused("a byte more", &root, id, append(bytes.Clone(sealed), 0))
	refused("a key of zeros", new([32]byte), id, sealed)
}

func flipped(b []byte, bit int) []byte {
	b = bytes.Clone(b)
	b[bit/8] ^= 1 << (bit % 8)
	return b
}

// TestNomadKeepsNoPartOfItsInput, and a Wipe overwrites what it keeps.
func TestNomadKeepsNoPartOfItsInput(t *testing.T) {
	for _, f := range inlineNomad(t) {
		text := bytes.Clone(f.Text)
		n, err := nks.DecodeNomad(text)
		if err != nil {
			t.Fatal(err)
		}
		clear(text)
		first, _, err := n.Open()
		if err != nil {
			t.Fatalf("%s: after its bytes were overwritten: %v", f.File, err)
		}
		kept := first.Clone()
		first.Wipe()
		again, _, err := n.Open()
		if err != nil || !same(again, kept) {
			t.Fatalf("%s: opens once only: %v", f.File, err)
		}
		n.Wipe()
		if _, _, err := n.Open(); !errors.Is(err, nks.ErrFormat) {
			t.Errorf("%s: opens after Wipe: %v", f.File, err)
		}
		for _, b := range n.Fields() {
			equal(t, "what is left after Wipe", b, make([]byte, len(b)))
		}
		if !same(again, kept) {
			t.Errorf("%s: Wipe reached what Open had returned", f.File)
		}
	}
	new(nks.Nomad).Wipe()
}

func TestIsNomad(t *testing.T) {
	for _, yes := range []string{
		`{"Meta":{}}`, " \n{ \"Meta\" : null", `{"KEK":"a\"}{,","Meta":`, `{"a":[{"b":"]}"}],"Meta":1}`,
	} {
		if !nks.IsNomad([]byte(yes)) {
			t.Errorf("%q is not", yes)
		}
	}
	for _, no := range []string{
		"", "{", "null", `"Meta"`, `["Meta"]`, `{"Meta"`, `{"meta":{}}`, `{"a":{"Meta":{}}}`, `{"a":"Meta"}`,
		`{"a":"\",\"Meta\":{}"}`, `{"a" "Meta":{}}`, `{Meta:{}}`, `x{"Meta":{}}`,
	} {
		if nks.IsNomad([]byte(no)) {
			t.Errorf("%q is", no)
		}
	}
}

// TestOurFilesAreNotNomads, however damaged; and Nomad's are, wherever they are cut.
func TestOurFilesAreNotNomads(t *testing.T) {
	for _, v := range vectors(t) {
		for n := range v.Text {
			if nks.IsNomad(v.Text[:n]) || nks.IsNomad(v.Text[n:]) {
				t.Fatalf("%s cut at %d is", v.File, n)
			}
		}
		for i := range len(v.Text) * 8 {
			if nks.IsNomad(flipped(v.Text, i)) {
				t.Fatalf("%s with bit %d flipped is", v.File, i)
			}
		}
		if _, err := nks.DecodeNomad(v.Text); !errors.Is(err, nks.ErrFormat) {
			t.Errorf("%s: read as one of Nomad's: %v", v.File, err)
		}
	}
	for _, f := range nomadFiles(t) {
		for n := len(`{"Meta":`); n < len(f.Text); n++ {
			if !nks.IsNomad(f.Text[:n]) {
				t.Fatalf("%s cut at %d is not", f.File, n)
			}
		}
		if _, err := nks.DecodeFile(f.Text); !errors.Is(err, nks.ErrFormat) {
			t.Errorf("%s: read as one of ours: %v", f.File, err)
		}
	}
}

func TestNomadNames(t *testing.T) {
	const uuid = "aabbccdd-0011-2233-4455-66778899aabb"
	for _, provider := range []string{
		".aead", ".aead.east", ".aead.a.b", ".aead.east 2", ".aead.été", ".transit.vault", ".awskms", "",
		".aead." + strings.Repeat("n", 204),
	} {
		name := uuid + provider + ".nks.json"
		if id, ok := nks.ParseNomadName(name); !ok || hex.EncodeToString(id[:]) != strings.ReplaceAll(uuid, "-", "") {
			t.Errorf("%q: %x, %v", name, id, ok)
		}
	}
	for _, name := range []string{
		"", ".nks.json", "aead.nks.json", ".aead.nks.json", uuid, uuid + ".json", uuid + ".aead", uuid + "aead.nks.json",
		uuid + "..nks.json", uuid + "...nks.json", uuid + ".aead..nks.json", uuid + "..aead.nks.json",
		uuid + ".aead.a/b.nks.json", uuid + `.aead.a\b.nks.json`, uuid + ".aead/../x.nks.json",
		uuid + ".aead.a\nb.nks.json", uuid + ".aead.a\x00.nks.json", uuid + ".aead.\xff.nks.json",
		uuid + ".aead.\u202e.nks.json", uuid + ".aead." + strings.Repeat("n", 205) + ".nks.json",
		uuid + ".aead.nks.json.malformed-1", uuid + ".aead.NKS.JSON", uuid + ".aead.nks.json ",
		strings.ToUpper(uuid) + ".aead.nks.json", strings.ReplaceAll(uuid, "-", "") + ".aead.nks.json",
		"./" + uuid + ".aead.nks.json", uuid[1:] + ".aead.nks.json", "0" + uuid + ".aead.nks.json",
	} {
		if id, ok := nks.ParseNomadName(name); ok || id != [16]byte{} {
			t.Errorf("%q: %x, %v", name, id, ok)
		}
	}
}

// TestEveryFileNameIsANomadName: an old file of Nomad's may have the name of one of ours.
func TestEveryFileNameIsANomadName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		if got, ok := nks.ParseNomadName(nks.FileName(id)); !ok || got != id {
			t.Fatalf("%x, %v", got, ok)
		}
	})
}
