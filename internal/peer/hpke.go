package peer

import (
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Sizes of the suite.
const (
	publicKeySize = 1216
	encSize       = 1120
	tagSize       = 16
)

// ErrOpen says that an answer was not sealed for this request, by and for these servers,
// or was altered. It never says which.
var ErrOpen = errors.New("sealed keys do not open")

// Secret is one key on its way between the keystore and the wire. It owns Material. It
// prints without it, and so does its JSON.
type Secret struct {
	ID       ID
	Check    Check
	Material []byte // 1 to MaxMaterial bytes
}

// Wipe overwrites the material.
func (s Secret) Wipe() { clear(s.Material) }

// Format implements fmt.Formatter, for every verb, without the material.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, "key "+s.ID.String()+" (redacted)") }

// MarshalJSON leaves the material out. A secret crosses the wire only in a FetchAnswer.
func (s Secret) MarshalJSON() ([]byte, error) {
	return []byte(`"key ` + s.ID.String() + ` (redacted)"`), nil
}

// Binding is what an answer is bound to besides its request: the cluster, and the IDs of the servers that asked and
// answered. Both sides take it from what they know, and not from the message.
type Binding struct {
	Cluster  [16]byte
	Asker    string
	Answerer string
}

// info is what the package doc says.
func (b Binding) info(request []byte) []byte {
	sum := sha256.Sum256(request)
	var info []byte
	for _, field := range [][]byte{
		[]byte("keyring v1 fetch"), b.Cluster[:], []byte(b.Asker), []byte(b.Answerer), sum[:],
	} {
		info = binary.BigEndian.AppendUint32(info, uint32(len(field)))
		info = append(info, field...)
	}
	return info
}

func aad(id ID, check Check) []byte { return append(id[:], check[:]...) }

// SealKeys answers an encoded fetch request with the given keys. A key that was not asked for is an error. The
// caller still has to wipe the keys.
func SealKeys(b Binding, request []byte, keys []Secret) (*FetchAnswer, error) {
	r, err := DecodeRequest(request)
	if err != nil {
		return nil, err
	}
	if r.Fetch == nil {
		return nil, errors.New("seal keys: not a fetch")
	}
	answer := &FetchAnswer{}
	public, err := hpke.MLKEM768X25519().NewPublicKey(r.Fetch.Public)
	if err != nil {
		return nil, fmt.Errorf("seal keys: public key: %w", err)
	}
	var sender *hpke.Sender
	answer.Enc, sender, err = hpke.NewSender(public, hpke.HKDFSHA256(), hpke.AES256GCM(), b.info(request))
	if err != nil {
		return nil, fmt.Errorf("seal keys: %w", err)
	}
	for _, k := range keys {
		if len(k.Material) == 0 || len(k.Material) > MaxMaterial {
			return nil, fmt.Errorf("seal key %s: %d bytes of material", k.ID, len(k.Material))
		}
		sealed, err := sender.Seal(aad(k.ID, k.Check), k.Material)
		if err != nil {
			return nil, fmt.Errorf("seal key %s: %w", k.ID, err)
		}
		answer.Keys = append(answer.Keys, SealedKey{k.ID, k.Check, sealed})
	}
	if err := answer.answers(r.Fetch.IDs); err != nil {
		return nil, fmt.Errorf("seal keys: %w", err)
	}
	return answer, nil
}

// answers says what is wrong with the answer to a fetch of these keys.
func (a *FetchAnswer) answers(ids []ID) error {
	asked := make(map[ID]bool, len(ids))
	for _, id := range ids {
		asked[id] = true
	}
	for _, k := range a.Keys {
		if !asked[k.ID] {
			return fmt.Errorf("key %s was not asked for", k.ID)
		}
	}
	return a.check() // none comes twice
}

// Pull is a fetch under way: its request, and the ephemeral key that opens one answer to it. Each server that is
// asked needs another Pull. It is not safe for concurrent use.
type Pull struct {
	ids     []ID
	request []byte
	private hpke.PrivateKey // nil when it was used; crypto/hpke cannot overwrite it
}

// NewFetch makes the request for 1 to MaxFetch distinct keys.
func NewFetch(ids []ID) (*Pull, error) {
	private, err := hpke.MLKEM768X25519().GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	request, err := Request{Fetch: &FetchRequest{ids, private.PublicKey().Bytes()}}.Encode()
	if err != nil {
		return nil, err
	}
	return &Pull{append([]ID(nil), ids...), request, private}, nil
}

// Request returns the encoded request.
func (p *Pull) Request() []byte { return p.request }

// Format implements fmt.Formatter, for every verb, without the private key.
func (p *Pull) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "fetch of %d keys", len(p.ids)) }

// Open opens the answer to the request. It can be called once: a second call is an error, whatever the first one
// returned. It returns all the keys of the answer, or an error and then leaves no opened key in memory. The caller
// has to find out whether a key is the right one: its check value must be that of the FSM, and its material must
// match it.
func (p *Pull) Open(b Binding, a *FetchAnswer) ([]Secret, error) {
	if p.private == nil {
		return nil, errors.New("open keys: a second answer to one fetch")
	}
	private := p.private
	p.private = nil
	if err := a.answers(p.ids); err != nil {
		return nil, fmt.Errorf("open keys: %w", err)
	}
	r, err := hpke.NewRecipient(a.Enc, private, hpke.HKDFSHA256(), hpke.AES256GCM(), b.info(p.request))
	if err != nil {
		return nil, ErrOpen
	}
	return openAll(a.Keys, r.Open)
}

// openAll wipes what it opened if one key does not open.
func openAll(keys []SealedKey, open func(aad, sealed []byte) ([]byte, error)) ([]Secret, error) {
	secrets := make([]Secret, 0, len(keys))
	for _, k := range keys {
		material, err := open(aad(k.ID, k.Check), k.Sealed)
		if err != nil {
			for _, s := range secrets {
				s.Wipe()
			}
			return nil, ErrOpen
		}
		secrets = append(secrets, Secret{k.ID, k.Check, material})
	}
	return secrets, nil
}
