package peer_test

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/bounded/boundedtest"
	"example.com/keyring/internal/peer"
)

var update = flag.Bool("update", false, "rewrite the golden messages")

func id(b byte) peer.ID { return peer.ID(bytes.Repeat([]byte{b}, 16)) }

func ids(n int) []peer.ID {
	list := make([]peer.ID, n)
	for i := range list {
		list[i] = peer.ID{0: 1, 14: byte(i >> 8), 15: byte(i)}
	}
	return list
}

// ed25519Public is the public key of RFC 8410, section 10.1, as PKIX DER.
var ed25519Public = []byte{
	0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
	0x19, 0xbf, 0x44, 0x09, 0x69, 0x84, 0xcd, 0xfe, 0x85, 0x41, 0xba, 0xc1, 0x67, 0xdc, 0x3b, 0x96,
	0xc8, 0x50, 0x86, 0xaa, 0x30, 0xb6, 0xb6, 0xcb, 0x0c, 0x5c, 0x38, 0xad, 0x70, 0x31, 0x66, 0xe1,
}

func orphan(i peer.ID) peer.Orphan {
	return peer.Orphan{
		ID: i, Algorithm: "EdDSA", Public: ed25519Public, Check: peer.Check{0xc0, 31: 0xff},
		Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
	}
}

// newer is an orphan whose signing algorithm this build does not know, with a public key as long as any of ML-DSA.
func newer(i peer.ID) peer.Orphan {
	o := orphan(i)
	o.Algorithm, o.Public = "ML-DSA-87", bytes.Repeat([]byte{0x30}, 2614)
	return o
}

func unproven(i peer.ID) peer.Orphan {
	o := orphan(i)
	o.Unproven = true
	return o
}

var goldenRequests = map[string]peer.Request{
	"hello": {Hello: &peer.HelloRequest{}},
	"fetch": {Fetch: &peer.FetchRequest{IDs: []peer.ID{id(0xa1), id(2)}, Public: bytes.Repeat([]byte{7}, 1216)}},
	"hold":  {Hold: &peer.HoldRequest{Keystore: id(9), Gained: []peer.ID{id(1), id(2)}, Lost: []peer.ID{id(3)}}},
	"ask":   {Ask: &peer.AskRequest{IDs: []peer.ID{id(1)}}},
	"offer": {Offer: &peer.OfferRequest{
		ID: id(1), Algorithm: "RS256", Check: peer.Check{1}, Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
	}},
	"offer-configuration": {Offer: &peer.OfferRequest{
		ID: id(1), Algorithm: "RS256", Check: peer.Check{1}, Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Configuration: 7,
	}},
	"removed": {Removed: &peer.RemovedRequest{IDs: []peer.ID{id(1), id(2)}}},
	"state":   {State: &peer.StateRequest{}},

	"hello-waiting":  {Hello: &peer.HelloRequest{Waiting: true}},
	"hello-unproven": {Hello: &peer.HelloRequest{Waiting: true, Unproven: true}},
	"hello-orphan":   {Hello: &peer.HelloRequest{Waiting: true, Unproven: true, Orphan: id(1)}},
	"confirm":        {State: &peer.StateRequest{Confirm: true}},
	"policies":       {State: &peer.StateRequest{Policies: true}},
	"files":          {State: &peer.StateRequest{Files: true}},

	"leave":    {Leave: &peer.LeaveRequest{}},
	"leave-by": {Leave: &peer.LeaveRequest{By: "ann"}},
}

var goldenAnswers = map[string]peer.Response{
	"hello": {Hello: &peer.HelloAnswer{Build: 1, Keystore: id(9), Orphans: []peer.Orphan{orphan(id(1))}}},
	"fetch": {Fetch: &peer.FetchAnswer{Enc: bytes.Repeat([]byte{8}, 1120), Keys: []peer.SealedKey{
		{ID: id(1), Check: peer.Check{1}, Sealed: bytes.Repeat([]byte{5}, 48)},
	}}},
	"hold":    {Hold: &peer.HoldAnswer{}},
	"ask":     {Ask: &peer.AskAnswer{Keystore: id(9), Held: []peer.ID{id(1)}}},
	"removed": {Removed: &peer.RemovedAnswer{IDs: []peer.ID{id(2)}}},
	"state": {State: &peer.StateAnswer{
		Time: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Leads: true, Term: 3, Entry: 41, Applied: 44, Configuration: 1,
	}},
	"state-policies": {State: &peer.StateAnswer{
		Time: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Term: 3, Policies: map[string]string{"Rotation.Every": "720h0m0s", "Tokens.Issuer": ""},
	}},
	"state-files": {State: &peer.StateAnswer{
		Time: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Term: 3, Files: 2,
	}},
	"hello-unproven": {Hello: &peer.HelloAnswer{Build: 1, Keystore: id(9), Orphans: []peer.Orphan{orphan(id(1)), unproven(id(2))}}},
	"hello-newer":    {Hello: &peer.HelloAnswer{Build: 3, Keystore: id(9), Orphans: []peer.Orphan{newer(id(1)), orphan(id(2))}}},
	"hello-waiting": {Hello: &peer.HelloAnswer{
		Build: 1, Keystore: id(9), Waiting: &peer.Waiting{Files: 3, Of: 50, KEKs: []string{"kms"}},
	}},
	"leave":       {Leave: &peer.LeaveAnswer{}},
	"leave-stays": {Leave: &peer.LeaveAnswer{AtRisk: "no majority of them holds 1 key"}},
	"not-leader":  {Refusal: &peer.Refusal{Code: peer.NotLeader, Leader: "server-2"}},
}

// golden compares b with the file, which is the message and a newline.
func golden(t *testing.T, version int, name string, b []byte) {
	t.Helper()
	path := filepath.Join("testdata", fmt.Sprint("v", version), name+".json")
	b = append(bytes.Clone(b), '\n')
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, want) {
		t.Errorf("%s: got\n%swant\n%s", path, b, want)
	}
}

func encoded(t testing.TB, m interface{ Encode() ([]byte, error) }) []byte {
	t.Helper()
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGoldenMessages(t *testing.T) {
	for name, r := range goldenRequests {
		b := encoded(t, r)
		golden(t, r.Version(), "request-"+name, b)
		if got, err := peer.DecodeRequest(b); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%s: decoded %+v, %v", name, got, err)
		}
	}
	for name, r := range goldenAnswers {
		b := encoded(t, r)
		golden(t, r.Version(), "answer-"+name, b)
		if got, err := answer(b); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%s: decoded %+v, %v", name, got, err)
		}
	}
}

// answer decodes an answer of any kind.
func answer(b []byte) (peer.Response, error) {
	var refusal *peer.Refusal
	hello, err := peer.DecodeAnswer[peer.HelloAnswer](b)
	if errors.As(err, &refusal) {
		return peer.Response{Refusal: refusal}, nil
	}
	if err == nil {
		return peer.Response{Hello: hello}, nil
	}
	if a, err := peer.DecodeAnswer[peer.FetchAnswer](b); err == nil {
		return peer.Response{Fetch: a}, nil
	}
	if a, err := peer.DecodeAnswer[peer.HoldAnswer](b); err == nil {
		return peer.Response{Hold: a}, nil
	}
	if a, err := peer.DecodeAnswer[peer.AskAnswer](b); err == nil {
		return peer.Response{Ask: a}, nil
	}
	if a, err := peer.DecodeAnswer[peer.StateAnswer](b); err == nil {
		return peer.Response{State: a}, nil
	}
	if a, err := peer.DecodeAnswer[peer.LeaveAnswer](b); err == nil {
		return peer.Response{Leave: a}, nil
	}
	a, err := peer.DecodeAnswer[peer.RemovedAnswer](b)
	return peer.Response{Removed: a}, err
}

func TestRequestsDecodeStrictly(t *testing.T) {
	const one = "01010101010101010101010101010101"
	for name, tt := range map[string]struct{ message, want string }{
		"empty":             {``, "not JSON"},
		"null":              {`null`, "unknown message version 0"},
		"array":             {`[1]`, "another kind of value"},
		"no version":        {`{"hello":{}}`, "unknown message version 0"},
		"older version":     {`{"version":0,"hello":{}}`, "unknown message version 0, this build reads 1 to 4"},
		"newer version":     {`{"version":5,"hello":{},"more":1}`, "unknown message version 5"},
		"higher version":    {`{"version":2,"hello":{}}`, "canonical"},
		"lower version":     {`{"version":1,"state":{}}`, "canonical"},
		"version as text":   {`{"version":"1","hello":{}}`, "another kind of value"},
		"no kind":           {`{"version":1}`, "of no kind"},
		"null kind":         {`{"version":1,"hello":null}`, "canonical"},
		"two kinds":         {`{"version":1,"hello":{},"ask":{"ids":["` + one + `"]}}`, "of two kinds"},
		"unknown kind":      {`{"version":1,"gossip":{}}`, `unknown member "gossip"`},
		"unknown field":     {`{"version":1,"hello":{"x":1}}`, `unknown member "x"`},
		"answer's field":    {`{"version":1,"error":{"code":"not-ready"}}`, `unknown member "error"`},
		"doubled kind":      {`{"version":1,"hello":{},"hello":{}}`, "comes twice"},
		"doubled version":   {`{"version":2,"version":1,"hello":{}}`, "comes twice"},
		"doubled field":     {`{"version":1,"ask":{"ids":[],"ids":["` + one + `"]}}`, "comes twice"},
		"other case":        {`{"version":1,"Hello":{}}`, "spelled in another case"},
		"other order":       {`{"hello":{},"version":1}`, "canonical"},
		"white space":       {`{"version":1, "hello":{}}`, "canonical"},
		"trailing space":    {`{"version":1,"hello":{}} `, "canonical"},
		"trailing bytes":    {`{"version":1,"hello":{}}{}`, "not JSON"},
		"escaped letter":    {`{"version":1,"ask":{"ids":["\u0030` + one[1:] + `"]}}`, "canonical"},
		"empty list":        {`{"version":1,"hold":{"keystore":"` + one + `","gained":[]}}`, "canonical"},
		"null list":         {`{"version":1,"ask":{"ids":null}}`, "no IDs"},
		"no IDs":            {`{"version":1,"ask":{"ids":[]}}`, "no IDs"},
		"uppercase ID":      {`{"version":1,"ask":{"ids":["` + strings.Repeat("AB", 16) + `"]}}`, "uppercase"},
		"UUID":              {`{"version":1,"ask":{"ids":["01010101-0101-0101-0101-010101010101"]}}`, "36 hexadecimal digits"},
		"not hexadecimal":   {`{"version":1,"ask":{"ids":["` + strings.Repeat("0g", 16) + `"]}}`, "invalid byte"},
		"ID twice":          {`{"version":1,"ask":{"ids":["` + one + `","` + one + `"]}}`, "comes twice"},
		"gained and lost":   {`{"version":1,"hold":{"keystore":"` + one + `","gained":["` + one + `"],"lost":["` + one + `"]}}`, "comes twice"},
		"no keystore":       {`{"version":1,"hold":{"keystore":"` + strings.Repeat("0", 32) + `"}}`, "no keystore ID"},
		"short public key":  {`{"version":1,"fetch":{"ids":["` + one + `"],"public":"AAAA"}}`, "public key of 3 bytes"},
		"base64, odd bits":  {`{"version":1,"fetch":{"ids":["` + one + `"],"public":"AB=="}}`, "canonical"},
		"base64, URL":       {`{"version":1,"fetch":{"ids":["` + one + `"],"public":"__--"}}`, "illegal base64"},
		"removed, no IDs":   {`{"version":1,"removed":{"ids":[]}}`, "no IDs"},
		"offer, local time": {`{"version":1,"offer":{"id":"` + one + `","algorithm":"RS256","check":"` + one + one + `","created":"2026-01-02T03:04:05+01:00"}}`, "not in UTC"},
		"offer, no name":    {`{"version":1,"offer":{"id":"` + one + `","algorithm":"","check":"` + one + one + `","created":"2026-01-02T03:04:05Z"}}`, "text of 0 bytes"},
		"too large":         {strings.Repeat(" ", peer.MaxMessage+1), "1048577 bytes"},
		"list too long":     {`{"version":1,"ask":{"ids":[null` + strings.Repeat(",null", peer.MaxIDs) + `]}}`, "more than 16384 elements"},
		"long unknown name": {`{"version":1,"` + strings.Repeat("x", 9999) + `":1}`, "unknown member"},
	} {
		_, err := peer.DecodeRequest([]byte(tt.message))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
			continue
		}
		if len(err.Error()) > 300 {
			t.Errorf("%s: the error has %d bytes", name, len(err.Error()))
		}
		if got, want := errors.Is(err, peer.ErrVersion), strings.Contains(tt.want, "version"); got != want {
			t.Errorf("%s: ErrVersion matches: %t", name, got)
		}
	}
}

func TestAnswersDecodeStrictly(t *testing.T) {
	valid := func(change func(*peer.Response)) peer.Response {
		r := peer.Response{Hello: &peer.HelloAnswer{Build: 1, Keystore: id(9), Orphans: []peer.Orphan{orphan(id(1))}}}
		change(&r)
		return r
	}
	for name, tt := range map[string]struct {
		response peer.Response
		want     string
	}{
		"no kind":          {peer.Response{}, "of no kind"},
		"unknown code":     {peer.Response{Refusal: &peer.Refusal{Code: "tired"}}, "unknown error code"},
		"unasked leader":   {peer.Response{Refusal: &peer.Refusal{Code: peer.NotReady, Leader: "b"}}, "names a leader"},
		"long leader":      {peer.Response{Refusal: &peer.Refusal{Code: peer.NotLeader, Leader: strings.Repeat("b", 256)}}, "256 bytes"},
		"leader not UTF-8": {peer.Response{Refusal: &peer.Refusal{Code: peer.NotLeader, Leader: "\xff"}}, "UTF-8"},
		"no build":         {valid(func(r *peer.Response) { r.Hello.Build = 0 }), "build 0"},
		"no keystore":      {valid(func(r *peer.Response) { r.Hello.Keystore = peer.ID{} }), "no keystore ID"},
		"orphan twice":     {valid(func(r *peer.Response) { r.Hello.Orphans = append(r.Hello.Orphans, orphan(id(1))) }), "comes twice"},
		"local time": {valid(func(r *peer.Response) {
			r.Hello.Orphans[0].Created = r.Hello.Orphans[0].Created.In(time.FixedZone("", 3600))
		}), "not in UTC"},
		"no public key":    {valid(func(r *peer.Response) { r.Hello.Orphans[0].Public = nil }), "public key of 0 bytes"},
		"large public key": {valid(func(r *peer.Response) { r.Hello.Orphans[0].Public = make([]byte, peer.MaxPublic+1) }), "public key of"},
		"no algorithm":     {valid(func(r *peer.Response) { r.Hello.Orphans[0].Algorithm = "" }), "algorithm"},
		"short enc":        {peer.Response{Fetch: &peer.FetchAnswer{Enc: []byte{1}}}, "encapsulated key"},
		"sealed nothing": {peer.Response{Fetch: &peer.FetchAnswer{Enc: make([]byte, 1120), Keys: []peer.SealedKey{
			{Sealed: make([]byte, 16)},
		}}}, "sealed bytes"},
		"state, local time": {peer.Response{State: &peer.StateAnswer{Time: time.Unix(1, 0).In(time.FixedZone("", 3600))}}, "not in UTC"},
		"leave, too long":   {peer.Response{Leave: &peer.LeaveAnswer{AtRisk: strings.Repeat("x", 4097)}}, "4096"},
		"held twice":        {peer.Response{Ask: &peer.AskAnswer{Keystore: id(1), Held: []peer.ID{id(2), id(2)}}}, "comes twice"},
	} {
		if _, err := tt.response.Encode(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: encodes: %v, want %q", name, err, tt.want)
		}
		// A peer without these checks sends the same.
		b, err := json.Marshal(struct {
			Version int `json:"version"`
			peer.Response
		}{tt.response.Version(), tt.response})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := answer(b); err == nil {
			t.Errorf("%s: decodes", name)
		}
	}
}

// TestAnswerIsNoHigherThanItsRequest: who asked in a version may not read a newer one.
func TestAnswerIsNoHigherThanItsRequest(t *testing.T) {
	first, second := peer.Request{Hello: &peer.HelloRequest{}}, peer.Request{State: &peer.StateRequest{}}
	newer := peer.Response{State: goldenAnswers["state"].State}
	if b, err := newer.EncodeFor(first); err == nil {
		t.Errorf("%s answers a request of version 1", b)
	}
	refusal := peer.Response{Refusal: &peer.Refusal{Code: peer.Unsupported}}
	for _, r := range []peer.Response{newer, refusal} {
		got, err := r.EncodeFor(second)
		if err != nil || !bytes.Equal(got, encoded(t, r)) {
			t.Errorf("%s, %v", got, err)
		}
	}
	if b := encoded(t, refusal); !bytes.HasPrefix(b, []byte(`{"version":1,`)) {
		t.Errorf("%s: a build of version 1 can't read that it is refused", b)
	}
}

func TestAnswerOfAnotherKindIsAnError(t *testing.T) {
	for name, r := range goldenAnswers {
		b := encoded(t, r)
		_, err := peer.DecodeAnswer[peer.AskAnswer](b)
		var refusal *peer.Refusal
		switch {
		case name == "ask" && err != nil,
			name != "ask" && err == nil,
			errors.As(err, &refusal) != (name == "not-leader"):
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRefusalTextNamesTheLeader(t *testing.T) {
	err := error(&peer.Refusal{Code: peer.NotLeader, Leader: "a\nb"})
	if got, want := err.Error(), `peer refused: not-leader, the leader is "a\nb"`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestFullMessagesFit(t *testing.T) {
	keys := make([]peer.SealedKey, peer.MaxFetch)
	for i, id := range ids(peer.MaxFetch) {
		keys[i] = peer.SealedKey{ID: id, Sealed: make([]byte, peer.MaxMaterial+16)}
	}
	encoded(t, peer.Response{Fetch: &peer.FetchAnswer{Enc: make([]byte, 1120), Keys: keys}})
	encoded(t, peer.Request{Hold: &peer.HoldRequest{Keystore: id(1), Gained: ids(peer.MaxIDs)}})
	for name, m := range map[string]interface{ Encode() ([]byte, error) }{
		"keys": peer.Response{Fetch: &peer.FetchAnswer{Enc: make([]byte, 1120), Keys: append(keys, peer.SealedKey{Sealed: make([]byte, 99)})}},
		"IDs":  peer.Request{Ask: &peer.AskRequest{IDs: ids(peer.MaxIDs + 1)}},
		"hold": peer.Request{Hold: &peer.HoldRequest{Keystore: id(1), Gained: ids(peer.MaxIDs), Lost: []peer.ID{id(7)}}},
	} {
		if _, err := m.Encode(); err == nil {
			t.Errorf("too many %s encode", name)
		}
	}

	hello := &peer.HelloAnswer{Build: 1, Keystore: id(1)}
	for _, id := range ids(peer.MaxOrphans) {
		hello.Orphans = append(hello.Orphans, orphan(id))
	}
	if _, err := answer(encoded(t, peer.Response{Hello: hello})); err != nil {
		t.Error(err)
	}
	hello.Orphans = append(hello.Orphans, orphan(id(7)))
	if _, err := (peer.Response{Hello: hello}).Encode(); err == nil {
		t.Error("too many orphans encode")
	}
	if _, err := x509.ParsePKIXPublicKey(ed25519Public); err != nil {
		t.Error(err)
	}
}

// The worst that one message can make the decoder allocate: beyond itself hardly anything.
func TestDecodeMemoryIsBounded(t *testing.T) {
	for name, message := range map[string]string{
		"objects": `{"version":1,"hello":{"orphans":[` + strings.Repeat(`{},`, 349000) + `{}]}}`,
		"nulls":   `{"version":1,"fetch":{"keys":[` + strings.Repeat(`null,`, 209000) + `null]}}`,
		"nesting": `{"version":1,"x":` + strings.Repeat(`[`, 1<<20-20) + `}`,
		"base64":  `{"version":1,"fetch":{"enc":"` + strings.Repeat("A", 1<<20-33) + `"}}`,
		"most":    `{"version":1,"hello":{"orphans":[` + strings.Repeat(`{},`, 1001) + `{}]}}`,
	} {
		b := []byte(message)
		boundedtest.Memory(t, 0, 512<<10, 0, func() {
			if _, err := peer.DecodeAnswer[peer.HelloAnswer](b); err == nil {
				t.Errorf("%s: decodes", name)
			}
		})
	}
}

// TestTagsAreTheLimits: a message may hold as much as its check allows, and its tag no more.
func TestTagsAreTheLimits(t *testing.T) {
	for _, c := range []struct {
		of    any
		field string
		want  string
	}{
		{peer.FetchRequest{}, "IDs", fmt.Sprintf("elements=%d", peer.MaxFetch)},
		{peer.FetchRequest{}, "Public", fmt.Sprintf("bytes=%d", peer.PublicKeySize)},
		{peer.HoldRequest{}, "Gained", fmt.Sprintf("elements=%d", peer.MaxIDs)},
		{peer.HoldRequest{}, "Lost", fmt.Sprintf("elements=%d", peer.MaxIDs)},
		{peer.AskRequest{}, "IDs", fmt.Sprintf("elements=%d", peer.MaxIDs)},
		{peer.RemovedRequest{}, "IDs", fmt.Sprintf("elements=%d", peer.MaxIDs)},
		{peer.HelloAnswer{}, "Orphans", fmt.Sprintf("elements=%d", peer.MaxOrphans)},
		{peer.Orphan{}, "Public", fmt.Sprintf("bytes=%d", peer.MaxPublic)},
		{peer.Orphan{}, "Algorithm", fmt.Sprintf("bytes=%d", peer.MaxText)},
		{peer.OfferRequest{}, "Algorithm", fmt.Sprintf("bytes=%d", peer.MaxText)},
		{peer.FetchAnswer{}, "Enc", fmt.Sprintf("bytes=%d", peer.EncSize)},
		{peer.FetchAnswer{}, "Keys", fmt.Sprintf("elements=%d", peer.MaxFetch)},
		{peer.SealedKey{}, "Sealed", fmt.Sprintf("bytes=%d", peer.MaxMaterial+peer.TagSize)},
		{peer.AskAnswer{}, "Held", fmt.Sprintf("elements=%d", peer.MaxIDs)},
		{peer.RemovedAnswer{}, "IDs", fmt.Sprintf("elements=%d", peer.MaxIDs)},
		{peer.LeaveRequest{}, "By", fmt.Sprintf("bytes=%d", peer.MaxText)},
		{peer.Refusal{}, "Leader", fmt.Sprintf("bytes=%d", peer.MaxText)},
	} {
		f, _ := reflect.TypeOf(c.of).FieldByName(c.field)
		if got := f.Tag.Get("bound"); got != c.want {
			t.Errorf("%T.%s has the tag %q, want %q", c.of, c.field, got, c.want)
		}
	}
}
