package kms_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/kms"
	"example.com/keyring/node"
	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/v2/aead"
	"github.com/hashicorp/go-kms-wrapping/wrappers/transit/v2"
	"google.golang.org/protobuf/proto"
)

const token = "s.stand-in"

// newVault stands in for Vault's transit engine, with one key named "keyring".
func newVault(tb testing.TB) *httptest.Server {
	tb.Helper()
	gcm := newGCM(tb)
	answer := func(w http.ResponseWriter, status int, body any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if err := json.NewEncoder(w).Encode(body); err != nil {
			tb.Error(err)
		}
	}
	refuse := func(w http.ResponseWriter, status int, why string) {
		answer(w, status, map[string]any{"errors": []string{why}})
	}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/transit/encrypt/keyring", func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Plaintext []byte }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			refuse(w, http.StatusBadRequest, "no plaintext")
			return
		}
		c := "vault:v1:" + base64.StdEncoding.EncodeToString(gcm.Seal(nil, nil, in.Plaintext, nil))
		answer(w, http.StatusOK, map[string]any{"data": map[string]any{"ciphertext": c, "key_version": 1}})
	})
	mux.HandleFunc("PUT /v1/transit/decrypt/keyring", func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Ciphertext string }
		err := json.NewDecoder(r.Body).Decode(&in)
		text, ok := strings.CutPrefix(in.Ciphertext, "vault:v1:")
		if err != nil || !ok {
			refuse(w, http.StatusBadRequest, "invalid ciphertext: no prefix")
			return
		}
		c, err := base64.StdEncoding.Strict().DecodeString(text)
		if err != nil {
			refuse(w, http.StatusBadRequest, "invalid ciphertext: could not decode base64")
			return
		}
		p, err := gcm.Open(nil, nil, c, nil)
		if err != nil {
			refuse(w, http.StatusBadRequest, "cipher: message authentication failed")
			return
		}
		answer(w, http.StatusOK, map[string]any{"data": map[string]any{"plaintext": p}})
	})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Vault-Token") != token {
			refuse(w, http.StatusForbidden, "permission denied")
			return
		}
		mux.ServeHTTP(w, r)
	}))
	tb.Cleanup(srv.Close)
	return srv
}

func newGCM(tb testing.TB) cipher.AEAD {
	tb.Helper()
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		tb.Fatal(err)
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		tb.Fatal(err)
	}
	return gcm
}

func newTransit(tb testing.TB, addr string) *transit.Wrapper {
	tb.Helper()
	w := transit.NewWrapper()
	_, err := w.SetConfig(tb.Context(), wrapping.WithDisallowEnvVars(true), transit.WithAddress(addr),
		transit.WithMountPath("transit"), transit.WithKeyName("keyring"), transit.WithToken(token))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { w.Finalize(context.Background()) })
	client(w).SetMaxRetries(0) // the retries only take time
	return w
}

// client is what the tests change in Vault's client.
func client(w *transit.Wrapper) interface {
	SetMaxRetries(int)
	SetToken(string)
} {
	return w.GetClient().(*transit.TransitClient).GetApiClient()
}

var aeadKey = bytes.Repeat([]byte{7}, 32)

func newAEAD(tb testing.TB) wrapping.Wrapper {
	tb.Helper()
	w := aead.NewWrapper()
	if _, err := w.SetConfig(tb.Context(), wrapping.WithKeyId("the-key"), aead.WithKey(aeadKey)); err != nil {
		tb.Fatal(err)
	}
	return w
}

func newKEK(tb testing.TB, id string, w wrapping.Wrapper) keyring.KEK {
	tb.Helper()
	k, err := kms.New(id, w)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// each runs a test against both wrappers.
func each(t *testing.T, test func(t *testing.T, k keyring.KEK)) {
	t.Run("aead", func(t *testing.T) { test(t, newKEK(t, "aead", newAEAD(t))) })
	t.Run("transit", func(t *testing.T) { test(t, newKEK(t, "transit", newTransit(t, newVault(t).URL))) })
}

var (
	secret = []byte("the material of a root key")
	aad    = []byte("aad")
)

func mustWrap(tb testing.TB, k keyring.KEK) []byte {
	tb.Helper()
	wrapped, err := k.Wrap(tb.Context(), secret, aad)
	if err != nil {
		tb.Fatal(err)
	}
	return wrapped
}

func TestNewRefusesWhatFilesCannotCarry(t *testing.T) {
	w := newAEAD(t)
	for _, id := range []string{"", "\n", "Schlüssel", strings.Repeat("x", 129)} {
		if _, err := kms.New(id, w); err == nil {
			t.Errorf("ID %q is taken", id)
		}
	}
	if _, err := kms.New("id", nil); err == nil {
		t.Error("a nil wrapper is taken")
	}
	longest := strings.Repeat("x", 128)
	if k := newKEK(t, longest, w); k.ID() != longest {
		t.Errorf("ID is %q", k.ID())
	}
}

func TestUnwrapReversesWrap(t *testing.T) {
	each(t, func(t *testing.T, k keyring.KEK) {
		for _, p := range [][]byte{nil, {}, {0}, secret, bytes.Repeat([]byte{1}, 10_000)} {
			for _, a := range [][]byte{nil, aad, bytes.Repeat(aad, 1000)} {
				before := bytes.Clone(p)
				wrapped, err := k.Wrap(t.Context(), p, a)
				if err != nil {
					t.Fatal(err)
				}
				got, err := k.Unwrap(t.Context(), wrapped, a)
				if err != nil || !bytes.Equal(got, p) || !bytes.Equal(p, before) {
					t.Fatalf("%d bytes, AAD of %d: got %d bytes, %v", len(p), len(a), len(got), err)
				}
			}
		}
	})
}

func TestUnwrapRefusesAnotherAAD(t *testing.T) {
	each(t, func(t *testing.T, k keyring.KEK) {
		wrapped := mustWrap(t, k)
		for _, other := range []string{"", "aae", "aad\x00"} {
			if got, err := k.Unwrap(t.Context(), wrapped, []byte(other)); !errors.Is(err, keyring.ErrDecrypt) || got != nil {
				t.Errorf("AAD %q: %q, %v", other, got, err)
			}
		}
	})
}

// TestUnwrapRefusesEveryBitFlipped lets a flip pass only where it reaches nothing but what the
// wrapper does not read, the KeyInfo, and then only with the plaintext as it was.
func TestUnwrapRefusesEveryBitFlipped(t *testing.T) {
	each(t, func(t *testing.T, k keyring.KEK) {
		wrapped := mustWrap(t, k)
		want := decode(t, wrapped).Ciphertext
		refused := 0
		for i := range 8 * len(wrapped) {
			flipped := bytes.Clone(wrapped)
			flipped[i/8] ^= 1 << (i % 8)
			got, err := k.Unwrap(t.Context(), flipped, aad)
			switch {
			case err != nil && got != nil:
				t.Errorf("bit %d: %d bytes beside the error %v", i, len(got), err)
			case err != nil:
				refused++
			case !bytes.Equal(got, secret):
				t.Errorf("bit %d: another plaintext", i)
			case !bytes.Equal(decode(t, flipped).Ciphertext, want):
				t.Errorf("bit %d: another ciphertext opens", i)
			}
		}
		if refused < 8*len(want) {
			t.Errorf("%d flips refused, and the ciphertext has %d bits", refused, 8*len(want))
		}
	})
}

func decode(tb testing.TB, wrapped []byte) *wrapping.BlobInfo {
	tb.Helper()
	blob := new(wrapping.BlobInfo)
	if err := proto.Unmarshal(wrapped[1:], blob); err != nil {
		tb.Fatal(err)
	}
	return blob
}

func encode(tb testing.TB, blob *wrapping.BlobInfo) []byte {
	tb.Helper()
	b, err := proto.Marshal(blob)
	if err != nil {
		tb.Fatal(err)
	}
	return append([]byte{1}, b...)
}

// TestUnwrapRefusesEveryPrefix lets one pass: that which lacks the KeyInfo, the last field,
// which neither wrapper reads.
func TestUnwrapRefusesEveryPrefix(t *testing.T) {
	each(t, func(t *testing.T, k keyring.KEK) {
		wrapped := mustWrap(t, k)
		blob := decode(t, wrapped)
		blob.KeyInfo = nil
		bare := len(encode(t, blob))
		for n := range wrapped {
			got, err := k.Unwrap(t.Context(), wrapped[:n], aad)
			if n == bare {
				if err != nil || !bytes.Equal(got, secret) {
					t.Errorf("without KeyInfo: %q, %v", got, err)
				}
			} else if !errors.Is(err, keyring.ErrDecrypt) || got != nil {
				t.Errorf("%d of %d bytes: %q, %v", n, len(wrapped), got, err)
			}
		}
	})
}

func TestUnwrapRefusesGarbage(t *testing.T) {
	each(t, func(t *testing.T, k keyring.KEK) {
		long := make([]byte, 40)
		for name, b := range map[string][]byte{
			"nothing":             nil,
			"empty":               {},
			"three bytes":         {1, 2, 3},
			"three other bytes":   []byte("abc"),
			"version alone":       {1},
			"unknown version":     append([]byte{2}, mustWrap(t, k)[1:]...),
			"no ciphertext":       encode(t, &wrapping.BlobInfo{KeyInfo: &wrapping.KeyInfo{KeyId: "v1"}}),
			"3-byte ciphertext":   encode(t, &wrapping.BlobInfo{Ciphertext: []byte("abc")}),
			"plaintext in a file": encode(t, &wrapping.BlobInfo{Ciphertext: long, Plaintext: long}),
			"key in a file":       encode(t, &wrapping.BlobInfo{Ciphertext: long, KeyInfo: &wrapping.KeyInfo{Key: long}}),
		} {
			if got, err := k.Unwrap(t.Context(), b, aad); !errors.Is(err, keyring.ErrDecrypt) || got != nil {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
	})
}

// away holds what both calls say when the KMS gives no answer that could be about the bytes.
func away(t *testing.T, ctx context.Context, k keyring.KEK, wrapped []byte) (wrap, unwrap error) {
	t.Helper()
	b, wrap := k.Wrap(ctx, secret, aad)
	if wrap == nil || b != nil || errors.Is(wrap, keyring.ErrDecrypt) || !strings.Contains(wrap.Error(), k.ID()+": encrypt: ") {
		t.Errorf("Wrap: %d bytes, %v", len(b), wrap)
	}
	b, unwrap = k.Unwrap(ctx, wrapped, aad)
	if unwrap == nil || b != nil || errors.Is(unwrap, keyring.ErrDecrypt) || !strings.Contains(unwrap.Error(), k.ID()+": decrypt: ") {
		t.Errorf("Unwrap: %d bytes, %v", len(b), unwrap)
	}
	return wrap, unwrap
}

func TestKMSDownIsNotErrDecrypt(t *testing.T) {
	vault := newVault(t)
	k := newKEK(t, "transit", newTransit(t, vault.URL))
	wrapped := mustWrap(t, k)
	vault.Close()
	away(t, t.Context(), k, wrapped)
}

func TestMissingPermissionIsNotErrDecrypt(t *testing.T) {
	w := newTransit(t, newVault(t).URL)
	k := newKEK(t, "transit", w)
	wrapped := mustWrap(t, k)
	client(w).SetToken("s.revoked")
	if _, err := away(t, t.Context(), k, wrapped); err != nil && !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("why is lost: %v", err)
	}
	client(w).SetToken(token)
	if got, err := k.Unwrap(t.Context(), wrapped, aad); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("after the permission is back: %q, %v", got, err)
	}
}

func TestAnotherKeyIsNotErrDecrypt(t *testing.T) {
	wrapped := mustWrap(t, newKEK(t, "transit", newTransit(t, newVault(t).URL)))
	other := newKEK(t, "transit", newTransit(t, newVault(t).URL))
	if got, err := other.Unwrap(t.Context(), wrapped, aad); err == nil || got != nil || errors.Is(err, keyring.ErrDecrypt) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestCallsEndWithTheContext(t *testing.T) {
	each(t, func(t *testing.T, k keyring.KEK) {
		wrapped := mustWrap(t, k)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if wrap, unwrap := away(t, ctx, k, wrapped); !errors.Is(wrap, context.Canceled) || !errors.Is(unwrap, context.Canceled) {
			t.Errorf("Wrap: %v; Unwrap: %v", wrap, unwrap)
		}
	})
}

// TestCallInFlightEndsWithTheContext has a KMS that takes the call and says nothing.
func TestCallInFlightEndsWithTheContext(t *testing.T) {
	began := make(chan struct{}, 1)
	vault := newVault(t)
	w := newTransit(t, vault.URL)
	k := newKEK(t, "transit", w)
	wrapped := mustWrap(t, k)
	vault.Config.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // only then does the server notice that the caller has gone
		select {
		case began <- struct{}{}:
		default:
		}
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	if _, err := k.Unwrap(ctx, wrapped, aad); !errors.Is(err, context.Canceled) || errors.Is(err, keyring.ErrDecrypt) {
		t.Error(err)
	}
}

// TestCallThatIgnoresTheContextIsLeftAlone a second after the context has ended, as of AWS KMS,
// whose client may wait for minutes. What it brings then is overwritten.
func TestCallThatIgnoresTheContextIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := make(chan struct{})
		var given, opened []byte
		k := newKEK(t, "stub", stub{
			encrypt: func(p []byte) (*wrapping.BlobInfo, error) {
				<-hangs
				given = p
				return &wrapping.BlobInfo{Ciphertext: bytes.Clone(p)}, nil
			},
			decrypt: func(b *wrapping.BlobInfo) ([]byte, error) {
				<-hangs
				opened = bytes.Clone(b.Ciphertext)
				return opened, nil
			},
		})
		stored := encode(t, &wrapping.BlobInfo{Ciphertext: bytes.Repeat([]byte{7}, 40)})
		for name, call := range map[string]func(context.Context) ([]byte, error){
			"Wrap":   func(ctx context.Context) ([]byte, error) { return k.Wrap(ctx, secret, aad) },
			"Unwrap": func(ctx context.Context) ([]byte, error) { return k.Unwrap(ctx, stored, aad) },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			began := time.Now()
			b, err := call(ctx)
			if d := time.Since(began); d > 11*time.Second || b != nil || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: after %v: %d bytes, %v", name, d, len(b), err)
			}
			cancel()
		}
		close(hangs)
		synctest.Wait()
		if len(given) == 0 || len(opened) == 0 || len(bytes.Trim(given, "\x00")) > 0 || len(bytes.Trim(opened, "\x00")) > 0 {
			t.Errorf("what came later stays: %x, %x", given, opened)
		}
	})
}

// stub is a wrapper that does as the test says.
type stub struct {
	wrapping.Wrapper
	encrypt func(plaintext []byte) (*wrapping.BlobInfo, error)
	decrypt func(blob *wrapping.BlobInfo) ([]byte, error)
}

func (s stub) Encrypt(_ context.Context, p []byte, opt ...wrapping.Option) (*wrapping.BlobInfo, error) {
	if len(opt) > 0 {
		return nil, errors.New("an option is given")
	}
	return s.encrypt(p)
}

func (s stub) Decrypt(_ context.Context, b *wrapping.BlobInfo, opt ...wrapping.Option) ([]byte, error) {
	if len(opt) > 0 {
		return nil, errors.New("an option is given")
	}
	return s.decrypt(b)
}

func TestPanicsBecomeErrorsWithoutTheirValue(t *testing.T) {
	k := newKEK(t, "stub", stub{
		encrypt: func(p []byte) (*wrapping.BlobInfo, error) { panic(fmt.Sprintf("can't encrypt %s", p)) },
		decrypt: func(b *wrapping.BlobInfo) ([]byte, error) { panic(fmt.Errorf("can't decrypt to %s", secret)) },
	})
	wrap, unwrap := away(t, t.Context(), k, encode(t, &wrapping.BlobInfo{Ciphertext: make([]byte, 40)}))
	for _, err := range []error{wrap, unwrap} {
		if !strings.Contains(err.Error(), "panicked") || strings.Contains(err.Error(), string(secret)) {
			t.Error(err)
		}
	}
}

// TestGarbageFromTheKMSIsRefused, whatever it says that it has decrypted.
func TestGarbageFromTheKMSIsRefused(t *testing.T) {
	sum := sha256.Sum256(aad)
	good := append(append([]byte{1}, sum[:]...), secret...)
	var answer []byte
	k := newKEK(t, "stub", stub{decrypt: func(*wrapping.BlobInfo) ([]byte, error) { return bytes.Clone(answer), nil }})
	stored := encode(t, &wrapping.BlobInfo{Ciphertext: make([]byte, 40)})
	for name, b := range map[string][]byte{
		"nothing": nil, "three bytes": []byte("abc"), "the header cut": good[:32], "another version": append([]byte{2}, good[1:]...),
		"another AAD": append([]byte{1, sum[0] ^ 1}, good[2:]...), "the plaintext alone": bytes.Repeat(secret, 3),
	} {
		answer = b
		if got, err := k.Unwrap(t.Context(), stored, aad); !errors.Is(err, keyring.ErrDecrypt) || got != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	answer = good
	if got, err := k.Unwrap(t.Context(), stored, aad); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("what it should be: %q, %v", got, err)
	}
}

// TestFormat holds the bytes against the package documentation, and that the wrapper gets the
// BlobInfo back as it returned it and that nothing stays in the buffers.
func TestFormat(t *testing.T) {
	var given, opened []byte
	var got *wrapping.BlobInfo
	stored := &wrapping.BlobInfo{
		Iv: []byte("iv"), Hmac: []byte("hmac"),
		KeyInfo: &wrapping.KeyInfo{Mechanism: 3, KeyId: "id", HmacKeyId: "hmac", WrappedKey: []byte("wrapped"), Flags: 5},
	}
	k := newKEK(t, "stub", stub{
		encrypt: func(p []byte) (*wrapping.BlobInfo, error) {
			given, stored.Ciphertext = p, bytes.Clone(p)
			return stored, nil
		},
		decrypt: func(b *wrapping.BlobInfo) ([]byte, error) {
			got, opened = b, bytes.Clone(b.Ciphertext)
			return opened, nil
		},
	})
	wrapped := mustWrap(t, k)
	sum := sha256.Sum256(aad)
	want := append(append([]byte{1}, sum[:]...), secret...)
	if !bytes.Equal(stored.Ciphertext, want) {
		t.Errorf("the KMS is given %x, want %x", stored.Ciphertext, want)
	}
	if wrapped[0] != 1 || !proto.Equal(decode(t, wrapped), stored) {
		t.Errorf("stored %x", wrapped)
	}
	if p, err := k.Unwrap(t.Context(), wrapped, aad); err != nil || !bytes.Equal(p, secret) {
		t.Errorf("%q, %v", p, err)
	}
	if !proto.Equal(got, stored) {
		t.Errorf("the wrapper is given %v, it returned %v", got, stored)
	}
	if zero := make([]byte, len(want)); !bytes.Equal(given, zero) || !bytes.Equal(opened, zero) {
		t.Error("plaintext stays in a buffer")
	}
}

func TestWrapRefusesToStoreASecret(t *testing.T) {
	for name, blob := range map[string]*wrapping.BlobInfo{
		"nil":       nil,
		"empty":     {},
		"plaintext": {Ciphertext: make([]byte, 99), Plaintext: secret},
		"key":       {Ciphertext: make([]byte, 99), KeyInfo: &wrapping.KeyInfo{Key: secret}},
	} {
		k := newKEK(t, "stub", stub{encrypt: func([]byte) (*wrapping.BlobInfo, error) { return blob, nil }})
		if b, err := k.Wrap(t.Context(), secret, aad); err == nil || b != nil {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
}

func TestKEKPrintsItsNameOnly(t *testing.T) {
	k := newKEK(t, "aead", newAEAD(t))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if got := fmt.Sprintf(verb, k); got != "KEK aead" {
			t.Errorf("%s prints %s", verb, got)
		}
	}
}

func startNode(t *testing.T, ctx context.Context, dir string, keks []keyring.KEK, old ...keyring.KEK) *node.Node {
	t.Helper()
	n, err := node.Start(ctx, node.Config{
		Dir: dir, KEKs: keks, OldKEKs: old, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// openNode starts a Node and waits until it has a key.
func openNode(t *testing.T, ctx context.Context, dir string, keks ...keyring.KEK) *node.Node {
	t.Helper()
	n := startNode(t, ctx, dir, keks)
	if err := n.Keyring().WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return n
}

func shut(t *testing.T, n *node.Node) {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestNodeOpensWhatItSealedBefore restarts with new wrappers, as another process would.
func TestNodeOpensWhatItSealedBefore(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	vault := newVault(t)
	dir := t.TempDir()
	fresh := func() []keyring.KEK {
		return []keyring.KEK{newKEK(t, "transit", newTransit(t, vault.URL)), newKEK(t, "aead", newAEAD(t))}
	}
	n := openNode(t, ctx, dir, fresh()...)
	sealed, err := n.Encrypt(ctx, []byte("data"), aad)
	if err != nil {
		t.Fatal(err)
	}
	shut(t, n)
	for _, c := range []struct {
		name string
		keks []keyring.KEK
	}{
		{name: "both", keks: fresh()},
		{name: "transit alone", keks: fresh()[:1]},
		{name: "both again", keks: fresh()},
	} {
		n := openNode(t, ctx, dir, c.keks...)
		if got, err := n.Decrypt(ctx, sealed, aad); err != nil || string(got) != "data" {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
		shut(t, n)
	}
}

// FuzzUnwrap looks for a panic, and for a plaintext that was not wrapped with that AAD. The
// mirror is a KMS that encrypts nothing: it lets every input reach the check of the header.
func FuzzUnwrap(f *testing.F) {
	k := newKEK(f, "aead", newAEAD(f))
	mirror := newKEK(f, "mirror", stub{
		encrypt: func(p []byte) (*wrapping.BlobInfo, error) {
			return &wrapping.BlobInfo{Ciphertext: bytes.Clone(p)}, nil
		},
		decrypt: func(b *wrapping.BlobInfo) ([]byte, error) { return bytes.Clone(b.Ciphertext), nil },
	})
	for _, seed := range [][]byte{
		mustWrap(f, k), mustWrap(f, mirror), nil, []byte("abc"), {1},
		encode(f, &wrapping.BlobInfo{Ciphertext: []byte("abc")}),
		encode(f, &wrapping.BlobInfo{Ciphertext: make([]byte, 40), Iv: []byte{1}}),
	} {
		f.Add(seed, aad)
	}
	f.Fuzz(func(t *testing.T, wrapped, a []byte) {
		got, err := k.Unwrap(t.Context(), wrapped, a)
		if err == nil && (!bytes.Equal(got, secret) || !bytes.Equal(a, aad)) {
			t.Errorf("opened to %q for %q", got, a)
		}
		got, err = mirror.Unwrap(t.Context(), wrapped, a)
		if err != nil {
			if got != nil || !errors.Is(err, keyring.ErrDecrypt) {
				t.Errorf("%q, %v", got, err)
			}
			return
		}
		sum := sha256.Sum256(a)
		if want := append(append([]byte{1}, sum[:]...), got...); !bytes.Equal(decode(t, wrapped).Ciphertext, want) {
			t.Errorf("the KMS returned %x, opened to %x", decode(t, wrapped).Ciphertext, got)
		}
	})
}
