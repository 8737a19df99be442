package nks_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"example.com/keyring/internal/nks"
)

// nomadNamed returns the vector with this text in its name or in the versions that write it.
func nomadNamed(t testing.TB, part string) nomadFile {
	t.Helper()
	for _, f := range nomadFiles(t) {
		if strings.Contains(f.File, part) || strings.Contains(f.By, part) {
			return f
		}
	}
	t.Fatalf("no vector %s", part)
	return nomadFile{}
}

// member returns the text of a member of a file, from its name to before the comma or the
// bracket behind it.
func member(t testing.TB, text, name string) string {
	t.Helper()
	_, rest, ok := strings.Cut(text, `"`+name+`":`)
	var value json.RawMessage
	if err := json.NewDecoder(strings.NewReader(rest)).Decode(&value); !ok || err != nil {
		t.Fatalf("no %s in %s", name, text)
	}
	return `"` + name + `":` + string(value)
}

// alteration replaces old in a file. Old may be "@" and the name of a member.
type alteration struct{ name, old, new string }

func (a alteration) apply(t testing.TB, text string) []byte {
	t.Helper()
	old := a.old
	if name, ok := strings.CutPrefix(old, "@"); ok {
		old = member(t, text, name)
	}
	if strings.Count(text, old) < 1 {
		t.Fatalf("%s: no %s", a.name, a.old)
	}
	return []byte(strings.Replace(text, old, strings.ReplaceAll(a.new, "@", old), 1))
}

func b64(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }

func refuseNomad(t *testing.T, text string, as ...alteration) {
	t.Helper()
	for _, a := range as {
		if n, err := nks.DecodeNomad(a.apply(t, text)); !errors.Is(err, nks.ErrFormat) || n != nil {
			t.Errorf("%s: %v, %v", a.name, n, err)
		}
	}
}

func TestDecodeNomadRefusesAnyForm(t *testing.T) {
	for _, part := range []string{"1.7.0 to 1.8.2", ".aead.east."} {
		text := string(nomadNamed(t, part).Text)
		refuseNomad(t, text,
			alteration{"nothing", text, ""},
			alteration{"null", text, "null"},
			alteration{"an array", text, "[@]"},
			alteration{"a string", text, `"Meta"`},
			alteration{"an empty object", text, "{}"},
			alteration{"two objects", text, "@@"},
			alteration{"a byte more", text, "@x"},
			alteration{"a byte order mark", text, "\ufeff@"},
			alteration{"a comma too many", "@KEK", "@,"},
			alteration{"single quotes", `"Meta"`, `'Meta'`},
			alteration{"nested deep in Meta", `"State":`, `"Other":` + strings.Repeat("[", 15) + strings.Repeat("]", 15) + `,@`},
			alteration{"more than MaxFile", "@KEK", "@" + strings.Repeat(" ", nks.MaxFile)},

			alteration{"no Meta", "@Meta", `"Mata":{}`},
			alteration{"Meta null", "@Meta", `"Meta":null`},
			alteration{"Meta an array", "@Meta", `"Meta":[]`},
			alteration{"Meta empty", "@Meta", `"Meta":{}`},
			alteration{"Meta twice", "@Meta", "@,@"},
			alteration{"Meta null, then not", "@Meta", `"Meta":null,@`},
			alteration{"no KeyID", "@KeyID", `"ID":1`},
			alteration{"KeyID a number", "@KeyID", `"KeyID":1`},
			alteration{"KeyID an array", "@KeyID", `"KeyID":[1]`},
			alteration{"KeyID in capitals", "@KeyID", `"KeyID":"AABBCCDD-0011-2233-4455-66778899AABB"`},
			alteration{"KeyID without dashes", "@KeyID", `"KeyID":"aabbccdd00112233445566778899aabb"`},
			alteration{"KeyID twice", "@KeyID", "@,@"},
			alteration{"no Algorithm", "@Algorithm", `"A":1`},
			alteration{"another algorithm", "@Algorithm", `"Algorithm":"aes128-gcm"`},
			alteration{"Algorithm null", "@Algorithm", `"Algorithm":null`},
			alteration{"Algorithm twice", "@Algorithm", "@,@"},
			alteration{"CreateTime a string", "@CreateTime", `"CreateTime":"1"`},
			alteration{"CreateTime a fraction", "@CreateTime", `"CreateTime":1.5`},
			alteration{"CreateTime beyond 64 bits", "@CreateTime", `"CreateTime":9223372036854775808`},
			alteration{"CreateTime twice", "@CreateTime", "@,@"},

			alteration{"no KEK", "@KEK", `"KEK":null`},
			alteration{"empty KEK", "@KEK", `"KEK":""`},
			alteration{"KEK of 16 bytes", "@KEK", `"KEK":"` + b64(16) + `"`},
			alteration{"KEK of 31 bytes", "@KEK", `"KEK":"` + b64(31) + `"`},
			alteration{"KEK of 33 bytes", "@KEK", `"KEK":"` + b64(33) + `"`},
			alteration{"KEK a number", "@KEK", `"KEK":1`},
			alteration{"KEK an array of numbers", "@KEK", `"KEK":[0` + strings.Repeat(",0", 31) + `]`},
			alteration{"KEK twice", "@KEK", "@,@"},
			alteration{"KEK null, then not", "@KEK", `"KEK":null,@`},
			alteration{"KEK without padding", "@KEK", `"KEK":"` + strings.TrimRight(b64(32), "=") + `"`},
			alteration{"KEK in base64url", "@KEK", `"KEK":"__` + b64(32)[2:] + `"`},
			alteration{"KEK with bits left over", "@KEK", `"KEK":"` + b64(32)[:42] + `B="`},
			alteration{"KEK with an escape", "@KEK", `"KEK":"\u0041` + b64(32)[1:] + `"`},
			alteration{"KEK in lower case", `"KEK"`, `"kek"`},
			alteration{"KEK in both cases", "@KEK", `@,"kek":""`},
			alteration{"KEK by an escaped name", `"KEK"`, `"\u004bEK"`},
			alteration{"an unknown member", "@KEK", `@,"HMAC":""`},
			alteration{"an unknown member that is null", "@KEK", `@,"HMAC":null`},
			alteration{"a member without a name", "@KEK", `@,"":1`},
		)
	}
}

func TestDecodeNomadRefusesBareFiles(t *testing.T) {
	text := string(nomadNamed(t, "1.7.0 to 1.8.2").Text)
	refuseNomad(t, text,
		alteration{"no DEK", "@DEK", `"DEK":null`},
		alteration{"DEK of 59 bytes", "@DEK", `"DEK":"` + b64(59) + `"`},
		alteration{"DEK of 61 bytes", "@DEK", `"DEK":"` + b64(61) + `"`},
		alteration{"DEK an object", "@DEK", `"DEK":{}`},
		alteration{"DEK twice", "@DEK", "@,@"},
		alteration{"RSAKey by another name", `"RSAKey"`, `"RSAKeys"`},
		alteration{"RSAKey in another case", `"RSAKey"`, `"RsaKey"`},
		alteration{"RSAKey an object", "@RSAKey", `"RSAKey":{}`},
		alteration{"RSAKey false", "@RSAKey", `"RSAKey":false`},
		alteration{"RSAKey not base64", "@RSAKey", `"RSAKey":"."`},
		alteration{"RSAKey twice", "@RSAKey", "@,@"},
		alteration{"RSAKey, then null", "@RSAKey", `@,"RSAKey":null`},
		alteration{"RSAKey of 3 KiB", "@RSAKey", `"RSAKey":"` + b64(3<<10) + `"`},
		alteration{"ProviderID", "@KEK", `@,"ProviderID":"aead"`},
		alteration{"WrappedRSAKey", "@KEK", `@,"WrappedRSAKey":{}`},
		alteration{"WrappedDEK", "@KEK", `@,"WrappedDEK":null`},
	)
}

func TestDecodeNomadRefusesProvidedFiles(t *testing.T) {
	f := nomadNamed(t, ".aead.east.")
	text := string(f.Text)
	provider := func(name, value string) alteration {
		return alteration{"ProviderID " + name, "@ProviderID", `"ProviderID":` + value}
	}
	refuseNomad(t, text,
		provider("null", "null"), provider("empty", `""`), provider("a number", "1"),
		provider("without a name", `"aead."`), provider("without a kind", `".aead"`), provider("a dot", `"."`),
		provider("in capitals", `"AEAD"`), provider("of a KMS", `"transit.aead"`), provider("of a like kind", `"aeadx"`),
		provider("with a slash", `"aead.a/b"`), provider("with a backslash", `"aead.a\\b"`),
		provider("with a newline", `"aead.a\nb"`), provider("with a zero", `"aead.\u0000"`),
		provider("that turns the text", `"aead.\u202e"`), provider("too long", `"aead.`+strings.Repeat("n", 205)+`"`),
		provider("twice", `"aead","ProviderID":"aead"`),
		alteration{"no ProviderID", `"ProviderID":"aead.east",`, ""},
		alteration{"Provider twice", "@Provider", "@,@"},
		alteration{"DEK too", "@KEK", `@,"DEK":""`},
		alteration{"WrappedDEK null", "@WrappedDEK", `"WrappedDEK":null`},
		alteration{"WrappedDEK empty", "@WrappedDEK", `"WrappedDEK":{}`},
		alteration{"WrappedDEK a string", "@WrappedDEK", `"WrappedDEK":"` + b64(60) + `"`},
		alteration{"WrappedDEK an array", "@WrappedDEK", `"WrappedDEK":[]`},
		alteration{"WrappedDEK twice", "@WrappedDEK", "@,@"},
		alteration{"WrappedDEK with more", `"key_info":`, `"key_infos":{},@`},
		alteration{"ciphertext empty", "@ciphertext", `"ciphertext":""`},
		alteration{"ciphertext null", "@ciphertext", `"ciphertext":null`},
		alteration{"ciphertext a number", "@ciphertext", `"ciphertext":7`},
		alteration{"ciphertext of 59 bytes", "@ciphertext", `"ciphertext":"` + b64(59) + `"`},
		alteration{"ciphertext twice", "@ciphertext", "@,@"},
		alteration{"ciphertext in capitals", `"ciphertext"`, `"Ciphertext"`},
		alteration{"RSA key by another name", `"WrappedRSAKey"`, `"WrappedRSAkey"`},
		alteration{"RSA key a string", "@WrappedRSAKey", `"WrappedRSAKey":""`},
		alteration{"RSA key without ciphertext", "@WrappedRSAKey", `"WrappedRSAKey":{"key_info":{}}`},
		alteration{"RSA key with an empty one", "@WrappedRSAKey", `"WrappedRSAKey":{"ciphertext":"","iv":""}`},
		alteration{"RSA key with more only", "@WrappedRSAKey", `"WrappedRSAKey":{"ciphertexts":""}`},
		alteration{"RSA key of 3 KiB", "@WrappedRSAKey", `"WrappedRSAKey":{"ciphertext":"` + b64(3<<10) + `"}`},
	)
	refuseNomad(t, string(nomadNamed(t, ".transit.").Text),
		alteration{"external KMS and a KEK", "@ProviderID", `@,"KEK":"` + b64(32) + `"`},
		alteration{"external KMS and a bad KEK", "@ProviderID", `@,"KEK":"."`},
		alteration{"external KMS and a bad RSA key", "@WrappedRSAKey", `"WrappedRSAKey":{"ciphertext":"."}`},
		alteration{"external KMS and nothing", "@WrappedDEK", `"WrappedDEK":{}`},
		alteration{"external KMS and no base64", "@ciphertext", `"ciphertext":"vault:v1:"`},
		provider("aead without a KEK", `"aead.vault"`),
	)
}

// TestDecodeNomadTakesWhatVersionsDifferIn opens files to the same key, or to that without RSA.
func TestDecodeNomadTakesWhatVersionsDifferIn(t *testing.T) {
	for _, c := range []struct {
		file string
		alteration
	}{
		{"1.4.0", alteration{"no CreateTime", "@CreateTime", `"Created":""`}},
		{"1.4.0", alteration{"CreateTime null", "@CreateTime", `"CreateTime":null`}},
		{"1.4.0", alteration{"RSAKey null", "@KEK", `@,"RSAKey":null`}},
		{"1.4.0", alteration{"RSAKey empty", "@KEK", `@,"RSAKey":""`}},
		{"1.4.0", alteration{"Meta with more", `"State":`, `"Flags":{"a":[1,{}]},"A":[],@`}},
		{"1.4.0", alteration{"nested 16 deep", `"State":`, `"Other":` + strings.Repeat("[", 14) + strings.Repeat("]", 14) + `,@`}},
		{"1.4.0", alteration{"more white space", `,"DEK":`, "\r\n , \t\"DEK\" : "}},
		{"1.9.0", alteration{"WrappedRSAKey null", "@WrappedRSAKey", `"WrappedRSAKey":null`}},
		{"1.9.0", alteration{"no WrappedRSAKey", `"WrappedRSAKey":{},`, ""}},
		{"1.9.0", alteration{"ProviderID with an escape", "@ProviderID", `"ProviderID":"aead.a\u0026b"`}},
		{".aead.east.", alteration{"the longest ProviderID", "@ProviderID", `"ProviderID":"aead.` + strings.Repeat("n", 204) + `"`}},
		{".aead.east.", alteration{"Provider null", "@Provider", `"Provider":null`}},
		{".aead.east.", alteration{"no key_info", "@key_info", `"iv":null`}},
		{".aead.east.", alteration{"every name", `"key_info":`,
			`"iv":"AA==","hmac":"","wrapped":true,"plaintext":"","value_path":"","client_data":{"a":[]},@`}},
	} {
		f := nomadNamed(t, c.file)
		want, algorithm := f.open(t)
		n, err := nks.DecodeNomad(c.apply(t, string(f.Text)))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if m, a, err := n.Open(); err != nil || a != algorithm || !same(m, want) {
			t.Errorf("%s: another key, %s, or %v", c.name, a, err)
		}
	}
	external := alteration{"KEK null", "@ProviderID", `@,"KEK":null`}
	if n, err := nks.DecodeNomad(external.apply(t, string(nomadNamed(t, ".transit.").Text))); err != nil || n.Inline() {
		t.Errorf("external KMS, KEK null: %v, %v", n, err)
	}
}

func TestDecodeNomadReadsAnyLayout(t *testing.T) {
	for _, f := range inlineNomad(t) {
		var anyOrder map[string]json.RawMessage
		if err := json.Unmarshal(f.Text, &anyOrder); err != nil {
			t.Fatal(err)
		}
		text, err := json.MarshalIndent(anyOrder, "\r", "\t")
		if err != nil {
			t.Fatal(err)
		}
		n, err := nks.DecodeNomad(text)
		if err != nil || !nks.IsNomad(text) {
			t.Fatalf("%s: %v", f.File, err)
		}
		want, _ := f.open(t)
		if m, _, err := n.Open(); err != nil || !same(m, want) {
			t.Errorf("%s: %v", f.File, err)
		}
	}
}

// wrapNomad writes a bare file whose RSA key is what rsaKey says.
func wrapNomad(t testing.TB, rsaKey []byte) []byte {
	t.Helper()
	kek := bytes.Repeat([]byte{7}, 32)
	block, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	seal := func(b []byte) string {
		nonce := make([]byte, 12, 64+len(b))
		return base64.StdEncoding.EncodeToString(gcm.Seal(nonce, nonce, b, nil))
	}
	return fmt.Appendf(nil, `{"Meta":{"KeyID":"aabbccdd-0011-2233-4455-66778899aabb","Algorithm":"aes256-gcm"},`+
		`"DEK":%q,"RSAKey":%q,"KEK":%q}`, seal(make([]byte, 32)), seal(rsaKey), base64.StdEncoding.EncodeToString(kek))
}

func TestOpenNomadRefusesOtherRSAKeys(t *testing.T) {
	good, _ := rsa.GenerateKey(rand.Reader, 2048)
	short, _ := rsa.GenerateKey(rand.Reader, 1024)
	long, _ := rsa.GenerateKey(rand.Reader, 3072)
	curve, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	pkcs1, ec := x509.MarshalPKCS1PrivateKey(good), must(x509.MarshalECPrivateKey(curve))
	for name, der := range map[string][]byte{
		"nothing":         {},
		"not DER":         []byte("not DER"),
		"1024 bits":       x509.MarshalPKCS1PrivateKey(short),
		"3072 bits":       x509.MarshalPKCS1PrivateKey(long),
		"PKCS #8":         must(x509.MarshalPKCS8PrivateKey(good)),
		"a public key":    x509.MarshalPKCS1PublicKey(&good.PublicKey),
		"an EC key":       ec,
		"a byte more":     append(bytes.Clone(pkcs1), 0),
		"a byte less":     pkcs1[:len(pkcs1)-1],
		"another modulus": flipped(pkcs1, 8*20),
	} {
		n, err := nks.DecodeNomad(wrapNomad(t, der))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		m, algorithm, err := n.Open()
		if !errors.Is(err, nks.ErrFormat) || m != nil || algorithm != "" {
			t.Errorf("%s: %v, %q, %v", name, m, algorithm, err)
		}
	}
	n, err := nks.DecodeNomad(wrapNomad(t, pkcs1))
	if err != nil {
		t.Fatal(err)
	}
	m, algorithm, err := n.Open()
	if err != nil || algorithm != "RS256" {
		t.Fatalf("a good one: %s, %v", algorithm, err)
	}
	equal(t, "signing", m.Signing(), must(x509.MarshalPKCS8PrivateKey(good)))
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}
