package join_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/join"
)

// vector is testdata/vectors.json, which vectors.py has made.
type vector struct {
	Text, ID, Root, Key, Cluster, Server, Sealed string
	End                                          time.Time
	Exporter, Leader, Name, Addr                 string
	LeaderKey, JoinerKey                         string
	LeaderProof, JoinerProof                     string
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// read returns the vector with the token, its record, and the meeting.
func read(t *testing.T) (v vector, token join.Token, r join.Record, m join.Meeting) {
	t.Helper()
	b, err := os.ReadFile("testdata/vectors.json")
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	if token, err = join.Parse(v.Text); err != nil {
		t.Fatal(err)
	}
	r = join.Record{Cluster: [16]byte(unhex(t, v.Cluster)), Server: v.Server, End: v.End, Key: [16]byte(unhex(t, v.Key))}
	m = join.Meeting{
		Exporter: unhex(t, v.Exporter), Cluster: v.Name, Leader: v.Leader, Joiner: v.Server,
		LeaderKey: unhex(t, v.LeaderKey), JoinerKey: unhex(t, v.JoinerKey), Addr: v.Addr,
	}
	return v, token, r, m
}

func TestTokenIsAsTheVectorHasIt(t *testing.T) {
	v, token, r, m := read(t)
	if token.Text() != v.Text || hex.EncodeToString(token.ID[:]) != v.ID {
		t.Errorf("%s has become %s", v.Text, token.Text())
	}
	opened, err := join.Open(unhex(t, v.Root), token.ID, r, unhex(t, v.Sealed))
	if err != nil || opened != token {
		t.Errorf("the sealed secret: %v", err)
	}
	for want, prove := range map[string]func(join.Token) ([]byte, error){v.LeaderProof: m.LeaderProof, v.JoinerProof: m.JoinerProof} {
		if got, err := prove(token); err != nil || hex.EncodeToString(got) != want || !join.Proven(got, unhex(t, want)) {
			t.Errorf("proof %x, %v, want %s", got, err, want)
		}
	}
}

// TestSealedSecretOpensForItsRecordAlone: every member of the record is bound, and every bit.
func TestSealedSecretOpensForItsRecordAlone(t *testing.T) {
	v, token, r, _ := read(t)
	root := unhex(t, v.Root)
	sealed, err := token.Seal(root, r)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := join.Open(root, token.ID, r, sealed); err != nil || got != token {
		t.Fatal(err)
	}
	if again, err := token.Seal(root, r); err != nil || bytes.Equal(again, sealed) {
		t.Errorf("sealed twice it is the same: %v", err)
	}
	for name, change := range map[string]func(*join.Record){
		"cluster": func(r *join.Record) { r.Cluster[0]++ },
		"server":  func(r *join.Record) { r.Server += "x" },
		"end":     func(r *join.Record) { r.End = r.End.Add(time.Second) },
		"key":     func(r *join.Record) { r.Key[0]++ },
	} {
		other := r
		change(&other)
		if _, err := join.Open(root, token.ID, other, sealed); err != join.ErrOpen {
			t.Errorf("another %s: %v", name, err)
		}
	}
	if _, err := join.Open(root, [16]byte{1}, r, sealed); err != join.ErrOpen {
		t.Errorf("another token's: %v", err)
	}
	root[0]++
	if _, err := join.Open(root, token.ID, r, sealed); err != join.ErrOpen {
		t.Errorf("another root key: %v", err)
	}
	root[0]--
	for i := range sealed {
		sealed[i] ^= 1
		if _, err := join.Open(root, token.ID, r, sealed); err != join.ErrOpen {
			t.Errorf("byte %d altered: %v", i, err)
		}
		sealed[i] ^= 1
		if _, err := join.Open(root, token.ID, r, sealed[:i]); err != join.ErrOpen {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
}

// TestProofIsOfOneMeeting: it differs in all that the two sides see, and between them.
func TestProofIsOfOneMeeting(t *testing.T) {
	_, token, _, m := read(t)
	leader, err := m.LeaderProof(token)
	if err != nil {
		t.Fatal(err)
	}
	if joiner, err := m.JoinerProof(token); err != nil || join.Proven(joiner, leader) {
		t.Errorf("one side's proof is the other's: %v", err)
	}
	meeting := reflect.TypeFor[join.Meeting]()
	for i := range meeting.NumField() {
		other := m
		f := reflect.ValueOf(&other).Elem().Field(i)
		if f.Kind() == reflect.String {
			f.SetString(f.String() + "x")
		} else {
			f.SetBytes(bytes.Clone(f.Bytes()))
			f.Bytes()[0]++
		}
		if got, err := other.LeaderProof(token); err != nil || join.Proven(got, leader) {
			t.Errorf("another %s: the same proof, %v", meeting.Field(i).Name, err)
		}
	}
	moved := m
	moved.Leader, moved.Joiner = moved.Leader+"s", strings.TrimPrefix(moved.Joiner, "s")
	if got, _ := moved.LeaderProof(token); join.Proven(got, leader) {
		t.Error("a letter can move from one ID to the next")
	}
	if got, _ := m.LeaderProof(join.New()); join.Proven(got, leader) {
		t.Error("another token has the same proof")
	}
	for _, got := range [][]byte{nil, {}, leader[:31], append(bytes.Clone(leader), 0)} {
		if join.Proven(got, leader) || join.Proven(got, got) && len(got) != 32 {
			t.Errorf("proof of %d bytes is taken", len(got))
		}
	}
	if _, err := (join.Meeting{}).LeaderProof(token); err == nil {
		t.Error("a proof of no connection")
	}
}

func TestParseTakesWholeTokensAlone(t *testing.T) {
	text := join.New().Text()
	old := base64.RawURLEncoding.EncodeToString(append([]byte{1}, make([]byte, 56)...))
	for name, bad := range map[string]string{
		"nothing": "", "garbage": "AAAA", "cut": text[:len(text)-1], "longer": text + "AA", "padded": text + "=",
		"with a space": " " + text, "with a newline": text + "\n", "of version 3": "Aw" + text[2:],
	} {
		if _, err := join.Parse(bad); err == nil || strings.Contains(err.Error(), bad) && bad != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := join.Parse(old); err == nil || !strings.Contains(err.Error(), "older build") {
		t.Errorf("a token of version 1: %v", err)
	}
}

func TestTokenPrintsWithoutItsSecret(t *testing.T) {
	_, token, _, _ := read(t)
	b, err := json.Marshal(token)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprint(token), fmt.Sprintf("%+v %#v %x %s", token, token, token, []any{token}), string(b)} {
		if strings.Contains(text, "6465") || strings.Contains(text, "100") || !strings.Contains(text, "redacted") {
			t.Errorf("%s", text)
		}
	}
	token.Wipe()
	if token.Text() != (join.Token{ID: token.ID}).Text() {
		t.Error("Wipe leaves something")
	}
}
