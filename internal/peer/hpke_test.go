package peer_test

import (
	"bytes"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"example.com/keyring/internal/peer"
)

var binding = peer.Binding{Cluster: [16]byte{1, 2, 3}, Asker: "a", Answerer: "b"}

func secrets(list ...peer.ID) []peer.Secret {
	var keys []peer.Secret
	for _, id := range list {
		keys = append(keys, peer.Secret{ID: id, Check: sha256.Sum256(id[:]), Material: bytes.Repeat(id[:1], 1300)})
	}
	return keys
}

func fetch(t *testing.T, list ...peer.ID) *peer.Pull {
	t.Helper()
	p, err := peer.NewFetch(list)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func seal(t *testing.T, b peer.Binding, request []byte, keys []peer.Secret) *peer.FetchAnswer {
	t.Helper()
	a, err := peer.SealKeys(b, request, keys)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestFetchCarriesKeys(t *testing.T) {
	all := ids(peer.MaxFetch)
	for name, keys := range map[string][]peer.Secret{
		"all": secrets(all...), "some": secrets(all[3], all[1]), "none": nil,
	} {
		p := fetch(t, all...)
		b := encoded(t, peer.Response{Fetch: seal(t, binding, p.Request(), keys)})
		for _, k := range keys {
			if bytes.Contains(b, []byte(base64.StdEncoding.EncodeToString(k.Material)[:64])) {
				t.Fatalf("%s: the answer shows material", name)
			}
		}
		a, err := peer.DecodeAnswer[peer.FetchAnswer](b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.Open(binding, a)
		if err != nil || len(got) != len(keys) || len(keys) > 0 && !reflect.DeepEqual(got, keys) {
			t.Errorf("%s: %d keys, %v", name, len(got), err)
		}
	}
}

// The wire format is what the package doc says, spelt out here a second time.
func TestSealedKeysFollowTheFormat(t *testing.T) {
	private, err := hpke.MLKEM768X25519().GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	request := []byte(`{"version":1,"fetch":{"ids":["` + strings.Repeat("05", 16) + `","` + strings.Repeat("06", 16) + `"],"public":"` +
		base64.StdEncoding.EncodeToString(private.PublicKey().Bytes()) + `"}}`)
	b := peer.Binding{Cluster: [16]byte([]byte("0123456789abcdef")), Asker: "asker", Answerer: "answering"}
	keys := []peer.Secret{
		{ID: id(6), Check: peer.Check{6}, Material: []byte("six")},
		{ID: id(5), Check: peer.Check{5}, Material: []byte("five")},
	}
	answer := seal(t, b, request, keys)

	sum := sha256.Sum256(request)
	info := "\x00\x00\x00\x10keyring v1 fetch" +
		"\x00\x00\x00\x100123456789abcdef" +
		"\x00\x00\x00\x05asker" +
		"\x00\x00\x00\x09answering" +
		"\x00\x00\x00\x20" + string(sum[:])
	r, err := hpke.NewRecipient(answer.Enc, private, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(info))
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range keys {
		got, err := r.Open(append(bytes.Repeat([]byte{k.ID[0]}, 16), append([]byte{k.Check[0]}, make([]byte, 31)...)...), answer.Keys[i].Sealed)
		if err != nil || string(got) != string(k.Material) {
			t.Errorf("key %d: %q, %v", i, got, err)
		}
	}
}

func TestOpenRefusesWhatIsNotTheAnswer(t *testing.T) {
	one, two, three := id(1), id(2), id(3)
	other := fetch(t, one, two)
	for name, tt := range map[string]struct {
		binding func(*peer.Binding)
		request func([]byte) []byte
		answer  func(*peer.FetchAnswer)
		want    string
	}{
		"cluster":      {binding: func(b *peer.Binding) { b.Cluster[15] ^= 1 }},
		"asker":        {binding: func(b *peer.Binding) { b.Asker = "c" }},
		"answerer":     {binding: func(b *peer.Binding) { b.Answerer = "c" }},
		"names swap":   {binding: func(b *peer.Binding) { b.Asker, b.Answerer = b.Answerer, b.Asker }},
		"names shift":  {binding: func(b *peer.Binding) { b.Asker, b.Answerer = "ab", "" }},
		"request":      {request: func(b []byte) []byte { return bytes.Replace(b, []byte(three.String()), []byte(id(4).String()), 1) }},
		"replay":       {request: func([]byte) []byte { return other.Request() }},
		"check":        {answer: func(a *peer.FetchAnswer) { a.Keys[0].Check[0] ^= 1 }},
		"last check":   {answer: func(a *peer.FetchAnswer) { a.Keys[1].Check[31] ^= 1 }},
		"ID":           {answer: func(a *peer.FetchAnswer) { a.Keys[0].ID = three }},
		"IDs swap":     {answer: func(a *peer.FetchAnswer) { a.Keys[0].ID, a.Keys[1].ID = two, one }},
		"order":        {answer: func(a *peer.FetchAnswer) { a.Keys[0], a.Keys[1] = a.Keys[1], a.Keys[0] }},
		"first left":   {answer: func(a *peer.FetchAnswer) { a.Keys = a.Keys[1:] }},
		"sealed":       {answer: func(a *peer.FetchAnswer) { a.Keys[1].Sealed[0] ^= 1 }},
		"tag":          {answer: func(a *peer.FetchAnswer) { s := a.Keys[1].Sealed; s[len(s)-1] ^= 1 }},
		"short sealed": {answer: func(a *peer.FetchAnswer) { s := &a.Keys[1].Sealed; *s = (*s)[:len(*s)-1] }},
		"enc":          {answer: func(a *peer.FetchAnswer) { a.Enc[1] ^= 1 }},
		"short enc":    {answer: func(a *peer.FetchAnswer) { a.Enc = a.Enc[1:] }, want: "encapsulated key"},
		"not asked":    {answer: func(a *peer.FetchAnswer) { a.Keys[1].ID = id(9) }, want: "not asked for"},
		"twice":        {answer: func(a *peer.FetchAnswer) { a.Keys[1] = a.Keys[0] }, want: "comes twice"},
	} {
		p := fetch(t, one, two, three)
		b, request := binding, p.Request()
		if tt.binding != nil {
			tt.binding(&b)
		}
		if tt.request != nil {
			request = tt.request(bytes.Clone(request))
		}
		a := seal(t, b, request, secrets(one, two))
		if tt.answer != nil {
			tt.answer(a)
		}
		got, err := p.Open(binding, a)
		switch {
		case err == nil || got != nil:
			t.Errorf("%s: opens", name)
		case tt.want == "" && !errors.Is(err, peer.ErrOpen), !strings.Contains(err.Error(), tt.want):
			t.Errorf("%s: %v, want ErrOpen or %q", name, err, tt.want)
		}
		if _, err := p.Open(binding, seal(t, binding, p.Request(), secrets(one))); err == nil {
			t.Errorf("%s: the good answer opens after a bad one", name)
		}
	}
}

func TestOpenTakesOneAnswer(t *testing.T) {
	p := fetch(t, id(1))
	a := seal(t, binding, p.Request(), secrets(id(1)))
	if _, err := p.Open(binding, a); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Open(binding, a); err == nil || !strings.Contains(err.Error(), "second answer") {
		t.Errorf("again: %v", err)
	}
}

func TestSealKeysRefuses(t *testing.T) {
	request := fetch(t, id(1), id(2)).Request()
	badKey := encoded(t, peer.Request{Fetch: &peer.FetchRequest{IDs: ids(1), Public: bytes.Repeat([]byte{0xff}, 1216)}})
	for name, tt := range map[string]struct {
		request []byte
		keys    []peer.Secret
		want    string
	}{
		"not asked":   {request, secrets(id(3)), "not asked for"},
		"twice":       {request, secrets(id(1), id(1)), "comes twice"},
		"empty":       {request, []peer.Secret{{ID: id(1)}}, "0 bytes"},
		"large":       {request, []peer.Secret{{ID: id(1), Material: make([]byte, peer.MaxMaterial+1)}}, "8193 bytes"},
		"no fetch":    {encoded(t, peer.Request{Hello: &peer.HelloRequest{}}), nil, "not a fetch"},
		"no request":  {nil, nil, "not JSON"},
		"invalid key": {badKey, nil, "public key"},
	} {
		if _, err := peer.SealKeys(binding, tt.request, tt.keys); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func TestNewFetchTakesUpTo64Keys(t *testing.T) {
	for n, ok := range map[int]bool{0: false, 1: true, 64: true, 65: false} {
		if _, err := peer.NewFetch(ids(n)); (err == nil) != ok {
			t.Errorf("%d keys: %v", n, err)
		}
	}
	if _, err := peer.NewFetch([]peer.ID{id(1), id(1)}); err == nil {
		t.Error("one key twice")
	}
}

func TestSecretsNeverPrint(t *testing.T) {
	s := peer.Secret{ID: id(0xab), Material: []byte("SECRETSECRET")}
	p := fetch(t, id(1))
	var out strings.Builder
	type holder struct{ S peer.Secret }
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
		fmt.Fprintf(&out, verb+" "+verb+" "+verb+" "+verb+" "+verb+"\n", s, &s, []peer.Secret{s}, holder{s}, p)
	}
	for _, v := range []any{s, &s, []peer.Secret{s}, holder{s}, map[string]any{"s": s}} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "secret", s, "list", []peer.Secret{s}, "pull", p)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "secret", s, "list", []peer.Secret{s})
	for _, shown := range []string{"SECRET", "534543", "U0VDUkVU", "83 69 67", "0x53"} {
		if strings.Contains(out.String(), shown) {
			t.Errorf("%q shows in\n%s", shown, out.String())
		}
	}
	if want := "key " + id(0xab).String() + " (redacted)"; fmt.Sprint(s) != want {
		t.Errorf("%s, want %s", s, want)
	}
}
