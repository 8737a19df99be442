package peer

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"example.com/keyring/internal/bounded"
)

// Version is the newest version of messages that this package reads and writes. A message carries the lowest
// version that has its kind and every member that is set. An answer is never of a higher version than its
// request. So servers of different builds understand each other in what they share, and the older one refuses
// the rest as Unsupported.
const Version = 4

// What a message may hold. A message within these limits fits MaxMessage, except for a very long list of orphans,
// which does not encode. The tags of the messages repeat the limits, so that nothing is allocated beyond
// them.
const (
	MaxMessage  = 1 << 20
	MaxFetch    = 64      // keys in one fetch
	MaxMaterial = 8 << 10 // bytes of one key
	MaxIDs      = 16384   // IDs in one hold or ask
	MaxOrphans  = 1000    // in one hello; the next hello has the rest
	MaxWaiting  = 16      // KEKs in one hello
)

// ErrVersion is matched by the error about a message of another version.
var ErrVersion = errors.New("unknown message version")

// ID is the ID of a key or of a keystore. Its text is lowercase hexadecimal.
type ID [16]byte

// String returns the text.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText returns the text.
func (id ID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText reads the text and nothing else.
func (id *ID) UnmarshalText(b []byte) error { return unhex(id[:], b) }

// Check is the check value of a key. Its text is lowercase hexadecimal.
type Check [32]byte

// MarshalText returns the text.
func (c Check) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, c[:]), nil }

// UnmarshalText reads the text and nothing else.
func (c *Check) UnmarshalText(b []byte) error { return unhex(c[:], b) }

func unhex(dst, src []byte) error {
	if len(src) != hex.EncodedLen(len(dst)) {
		return fmt.Errorf("%d hexadecimal digits, want %d", len(src), hex.EncodedLen(len(dst)))
	}
	if !bytes.Equal(src, bytes.ToLower(src)) {
		return errors.New("uppercase hexadecimal digits")
	}
	_, err := hex.Decode(dst, src)
	return err
}

// Request is one question to a peer. Exactly one field is set.
type Request struct {
	Hello *HelloRequest `json:"hello,omitempty"`
	Fetch *FetchRequest `json:"fetch,omitempty"`
	Hold  *HoldRequest  `json:"hold,omitempty"`
	Ask   *AskRequest   `json:"ask,omitempty"`
	Offer *OfferRequest `json:"offer,omitempty"`

	Removed *RemovedRequest `json:"removed,omitempty"`

	State *StateRequest `json:"state,omitempty"` // version 2

	Leave *LeaveRequest `json:"leave,omitempty"` // version 4
}

// Version returns the lowest version that has the request: its kind, and every member that is set.
func (r Request) Version() int {
	if r.Leave != nil {
		return 4
	}
	if r.State != nil && (r.State.Policies || r.State.Files) || r.Hello != nil && (r.Hello.Unproven || r.Hello.Orphan != (ID{})) {
		return 3
	}
	if r.State != nil || r.Offer != nil && r.Offer.Configuration > 0 || r.Hello != nil && r.Hello.Waiting {
		return 2
	}
	return 1
}

// HelloRequest asks what the other build and keystore are, and for its orphans.
type HelloRequest struct {
	Waiting  bool `json:"waiting,omitempty"`  // also for the key files that wait. Version 2
	Unproven bool `json:"unproven,omitempty"` // also for unproven orphans. Version 3
	Orphan   ID   `json:"orphan,omitzero"`    // for this orphan alone; zero is for all. Version 3
}

// FetchRequest asks for 1 to MaxFetch keys, sealed to the public key. NewFetch makes it.
type FetchRequest struct {
	IDs    []ID   `json:"ids" bound:"elements=64"`
	Public []byte `json:"public" bound:"bytes=1216"`
}

// HoldRequest tells the leader which keys the asker has come to hold, and which it no longer holds, in its present
// keystore. Both lists may be empty: then the leader learns of the keystore.
type HoldRequest struct {
	Keystore ID   `json:"keystore"`
	Gained   []ID `json:"gained,omitempty" bound:"elements=16384"`
	Lost     []ID `json:"lost,omitempty" bound:"elements=16384"`
}

// AskRequest asks which of the keys the answerer holds now: on disk, not by its records.
type AskRequest struct {
	IDs []ID `json:"ids" bound:"elements=16384"`
}

// OfferRequest tells of a key that the asker, which leads, is about to add: the answerer may fetch the key before
// the key is in its FSM. The answer is an AskAnswer. Configuration is the index of the asker's latest raft
// configuration, or a later index: a server that has not applied it fetches nothing. Zero, in version 1, is none.
type OfferRequest struct {
	ID        ID        `json:"id"`
	Algorithm string    `json:"algorithm" bound:"bytes=255"`
	Check     Check     `json:"check"`
	Created   time.Time `json:"created"` // in UTC

	Configuration uint64 `json:"configuration,omitempty"` // version 2
}

// RemovedRequest asks the leader which of the keys are removed for good: their time to be
// undone is over. The asker is about to unlink their files.
type RemovedRequest struct {
	IDs []ID `json:"ids" bound:"elements=16384"`
}

// StateRequest asks any member what it is and knows now. Version 2. With Confirm a leader has a majority confirm
// that it leads, by an entry in raft's log: it is for askers that need StateAnswer.Leads.
type StateRequest struct {
	Confirm  bool `json:"confirm,omitempty"`
	Policies bool `json:"policies,omitempty"` // also for StateAnswer.Policies. Version 3
	Files    bool `json:"files,omitempty"`    // also for StateAnswer.Files. Version 3
}

// LeaveRequest asks the leader to remove the asker, and nobody else, from the cluster. Version 4.
type LeaveRequest struct {
	By string `json:"by,omitempty" bound:"bytes=255"` // who has asked the asker
}

// Response is the answer to a request, of the same kind but for an offer's, or a refusal.
// Exactly one field is set.
type Response struct {
	Hello   *HelloAnswer `json:"hello,omitempty"`
	Fetch   *FetchAnswer `json:"fetch,omitempty"`
	Hold    *HoldAnswer  `json:"hold,omitempty"`
	Ask     *AskAnswer   `json:"ask,omitempty"`
	Refusal *Refusal     `json:"error,omitempty"`

	Removed *RemovedAnswer `json:"removed,omitempty"`

	State *StateAnswer `json:"state,omitempty"` // version 2

	Leave *LeaveAnswer `json:"leave,omitempty"` // version 4
}

// Version returns the lowest version that has the answer: its kind, and every member that is set. A
// refusal is of version 1, which every build reads.
func (r Response) Version() int {
	if r.Leave != nil {
		return 4
	}
	unproven := func(o Orphan) bool { return o.Unproven }
	if r.State != nil && (r.State.Policies != nil || r.State.Files != 0) || r.Hello != nil && slices.ContainsFunc(r.Hello.Orphans, unproven) {
		return 3
	}
	if r.State != nil || r.Hello != nil && r.Hello.Waiting != nil {
		return 2
	}
	return 1
}

// HelloAnswer says which version of log entries the answerer's build applies, which
// keystore it has, and which key files lie there that its FSM does not know.
type HelloAnswer struct {
	Build    int      `json:"build"`
	Keystore ID       `json:"keystore"`
	Orphans  []Orphan `json:"orphans,omitempty" bound:"elements=1000"`

	Waiting *Waiting `json:"waiting,omitempty"` // nil if none wait. Version 2
}

// Waiting tells of key files of keys that the FSM does not know, and that the answerer can't open for now.
// Version 2.
type Waiting struct {
	Files int `json:"files"` // how many wait, at least one
	Of    int `json:"of"`    // how many there are of keys that the FSM does not know

	// KEKs are the ones that the files wait for. Files that can't be read wait for none.
	KEKs []string `json:"keks,omitempty" bound:"elements=16,bytes=128"`
}

// Orphan is a key that is in a keystore and not in the FSM.
type Orphan struct {
	ID        ID        `json:"id"`
	Algorithm string    `json:"algorithm" bound:"bytes=255"`
	Public    []byte    `json:"public" bound:"bytes=4096"` // PKIX DER, not parsed
	Check     Check     `json:"check"`
	Created   time.Time `json:"created"` // in UTC

	// Unproven says that only KEKs have opened the file to which anybody can wrap: a leader adopts the key only when an
	// operator asks for it. Version 3.
	Unproven bool `json:"unproven,omitempty"`
}

// FetchAnswer has those of the keys that the answerer holds. Pull.Open opens it.
type FetchAnswer struct {
	Enc  []byte      `json:"enc" bound:"bytes=1120"`
	Keys []SealedKey `json:"keys,omitempty" bound:"elements=64"`
}

// SealedKey is one key of a FetchAnswer.
type SealedKey struct {
	ID     ID     `json:"id"`
	Check  Check  `json:"check"`
	Sealed []byte `json:"sealed" bound:"bytes=8208"`
}

// HoldAnswer says that the report has arrived. The log has it when the FSM does.
type HoldAnswer struct{}

// LeaveAnswer says that the asker is no member any more, or why it is to stay one. Version 4.
type LeaveAnswer struct {
	AtRisk string `json:"atRisk,omitempty" bound:"bytes=4096"` // empty if it was removed; else the keys that would be at risk
}

// AskAnswer lists those of the keys asked for that are held, in the keystore of that name.
type AskAnswer struct {
	Keystore ID   `json:"keystore"`
	Held     []ID `json:"held,omitempty" bound:"elements=16384"`
}

// RemovedAnswer lists those of the keys asked for that are removed for good. A leader gives it
// only after a majority of the voters has confirmed that it leads.
type RemovedAnswer struct {
	IDs []ID `json:"ids,omitempty" bound:"elements=16384"`
}

// StateAnswer is what the answerer is and knows now. Version 2. A member that is added to it later belongs to a
// later version, and is left out when the request is older.
type StateAnswer struct {
	// Time is the answerer's clock, in UTC, just before it answered.
	Time time.Time `json:"time"`

	// Leads, for a request with Confirm, says that the answerer leads in Term, has applied the barrier of
	// Term, and that a majority of the voters has taken an entry from it after the question. Then its FSM
	// had, when the question came, all that the FSM of any leader had, and Entry tells how far that is.
	Leads bool   `json:"leads"`
	Term  uint64 `json:"term"` // raft's term there

	// Entry is the index of the keyring's last entry in raft's log that the answerer's FSM has applied
	// since its last restore. Zero is none; with Leads, the log has no entry of the keyring at all.
	Entry uint64 `json:"entry"`

	// Applied is the index of raft's log up to which raft has handed entries to the FSM, which may not
	// have applied them all yet. Configuration is the index of the raft configuration that its FSM was
	// told of last, and zero if that one came with a snapshot.
	Applied       uint64 `json:"applied"`
	Configuration uint64 `json:"configuration"`

	// Policies are the answerer's settings that have to be the same on all servers, as text, by their names in the
	// host's configuration. There is no secret among them. Version 3.
	Policies map[string]string `json:"policies,omitempty" bound:"elements=64,bytes=2048"`

	// Files is the newest version of key files that the answerer's build reads. Version 3.
	Files int `json:"files,omitempty"`
}

// Code says why a request was refused.
type Code string

// The codes. A server that is not ready, or is not the leader, may be asked again.
const (
	NotReady    Code = "not-ready"
	NotMember   Code = "not-member"
	NotLeader   Code = "not-leader"
	Unsupported Code = "unsupported" // the request's version or kind
	BadRequest  Code = "bad-request"
)

// ErrNotMember means that no server of an ID is in the raft configuration. It is for what can be done to a member alone.
// The refusal NotMember is about the server that asks, and does not match it.
var ErrNotMember = errors.New("not a member of the cluster")

// Refusal is the error answer. Leader is set, if it is known, with NotLeader.
type Refusal struct {
	Code   Code   `json:"code" bound:"bytes=64"`
	Leader string `json:"leader,omitempty" bound:"bytes=255"`
}

// Error has the code and the leader.
func (r *Refusal) Error() string {
	if r.Code == Unsupported {
		return "peer refused: unsupported: its build is older, and does not know such a request"
	}
	if r.Leader != "" {
		return fmt.Sprintf("peer refused: %s, the leader is %q", r.Code, r.Leader)
	}
	return "peer refused: " + string(r.Code)
}

// Encode returns the message. It is of version 1, which every build reads.
func (r *Refusal) Encode() ([]byte, error) { return Response{Refusal: r}.Encode() }

// Refused reports whether err is a refusal with that code.
func Refused(err error, code Code) bool {
	refusal, ok := errors.AsType[*Refusal](err)
	return ok && refusal.Code == code
}

type wireRequest struct {
	Version int `json:"version"`
	Request
}

type wireResponse struct {
	Version int `json:"version"`
	Response
}

type wireVersion struct {
	Version int `json:"version"`
}

var (
	requestType  = bounded.For[wireRequest](MaxMessage)
	responseType = bounded.For[wireResponse](MaxMessage)
	versionType  = bounded.For[wireVersion](MaxMessage)
)

// Encode returns the message, or says what is wrong with it.
func (r Request) Encode() ([]byte, error) {
	if _, err := r.kind(); err != nil {
		return nil, err
	}
	return encode(wireRequest{r.Version(), r})
}

// DecodeRequest reads what Request.Encode wrote and nothing else. The error matches
// ErrVersion if the message is of another version: that one deserves Unsupported.
func DecodeRequest(b []byte) (Request, error) {
	w, err := decode(requestType, b)
	if err != nil {
		return Request{}, err
	}
	if _, err := w.kind(); err != nil {
		return Request{}, err
	}
	if err := checkLowest(w.Version, w.Request.Version()); err != nil {
		return Request{}, err
	}
	return w.Request, nil
}

// Encode returns the message, or says what is wrong with it.
func (r Response) Encode() ([]byte, error) {
	if _, err := r.kind(); err != nil {
		return nil, err
	}
	return encode(wireResponse{r.Version(), r})
}

// EncodeFor is Encode for the answer to q. An answer of a newer version than q is an error, because the asker's
// build may not read it: the answerer has to leave out the members that q's version does not have.
func (r Response) EncodeFor(q Request) ([]byte, error) {
	if have, most := r.Version(), q.Version(); have > most {
		return nil, fmt.Errorf("peer message: an answer of version %d to a request of version %d", have, most)
	}
	return r.Encode()
}

// Answer is an answer of any kind.
type Answer interface {
	HelloAnswer | FetchAnswer | HoldAnswer | AskAnswer | RemovedAnswer | StateAnswer | LeaveAnswer
}

// DecodeAnswer reads the answer to a request of the kind that A answers. A refusal comes
// back as a *Refusal error, an answer to something else as another error.
func DecodeAnswer[A Answer](b []byte) (*A, error) {
	w, err := decode(responseType, b)
	if err != nil {
		return nil, err
	}
	k, err := w.kind()
	if err != nil {
		return nil, err
	}
	if err := checkLowest(w.Version, w.Response.Version()); err != nil {
		return nil, err
	}
	switch k := any(k).(type) {
	case *A:
		return k, nil
	case *Refusal:
		return nil, k
	}
	return nil, fmt.Errorf("peer message: %T, want %T", k, new(A))
}

func encode(w any) ([]byte, error) {
	b, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("peer message: %w", err)
	}
	if len(b) > MaxMessage {
		return nil, fmt.Errorf("peer message: %d bytes, at most %d fit", len(b), MaxMessage)
	}
	return b, nil
}

// decode accepts b only if its value encodes to the same bytes. That one rule refuses misspelt members, trailing
// bytes and other spellings of a value.
func decode[W any](t bounded.Type[W], b []byte) (w W, err error) {
	var none W
	// The version comes first: a message of another one has members that we do not know.
	v, err := versionType.DecodeKnown(b)
	if err != nil {
		return none, fmt.Errorf("peer message: %w", err)
	}
	if v.Version < 1 || v.Version > Version {
		return none, fmt.Errorf("peer message: %w %d, this build reads 1 to %d", ErrVersion, v.Version, Version)
	}
	if w, err = t.Decode(b); err != nil {
		return none, fmt.Errorf("peer message: %w", err)
	}
	again, err := json.Marshal(w)
	if err != nil || !bytes.Equal(again, b) {
		return none, errors.New("peer message: not in the canonical form")
	}
	return w, nil
}
