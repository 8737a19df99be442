// Package bounded decodes JSON that another server, a backup or a file has sent, into types that say
// how much they may hold. What holds more is refused before anything is allocated for it: a few bytes
// of JSON can otherwise stand for many times as many in memory, as {} does in a list of structs.
//
// # Bounds
//
// The tag bound of a field says how much may be in it, and in all that lies below it:
//
//	Servers []string `json:"servers" bound:"elements=1000,bytes=255"`
//
// elements is for each list and each map, bytes for each text: a string, a []byte once it is decoded, a
// json.RawMessage as it stands, a key of a map. A field below with a tag of its own goes by that one. A field
// that needs a bound and has none is a mistake that [For] finds, when the program starts. Numbers,
// booleans, times and arrays of fixed size need none.
//
// All lists and maps of a message together have at most [MaxElements] elements, whatever the bounds of each are:
// those of lists within lists multiply. What is passed over or is a json.RawMessage does not count.
//
// # Form
//
// An object has no member twice, and none that is spelled in another case than the field's, both of which
// encoding/json allows; its names are written without escapes; a []byte is a string of base64; and all of it
// is UTF-8. A null stands for what is absent.
//
// Errors say where and what, in words of ours, and quote at most a little of what was sent.
package bounded

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"unicode/utf8"

	"example.com/keyring/internal/strictjson"
)

// ErrBound is matched by errors about what holds more than it may.
var ErrBound = errors.New("more than its bound")

// ErrForm is matched by errors about what is no JSON, or not of the type's form.
var ErrForm = errors.New("malformed")

// MaxElements is how many elements all lists and maps of one message have at most, together.
const MaxElements = 1 << 17

// Type decodes JSON into a T. Its zero value is of no use: see For. It is safe for concurrent use.
type Type[T any] struct {
	most  int
	shape *shape
}

// For returns the decoder for T, of at most so many bytes of JSON. It panics if a field of T has no
// bound and needs one, or is of a type that JSON could fill with anything, such as an interface: so call
// it for a variable of a package.
func For[T any](most int) Type[T] {
	return Type[T]{most, shapeOf(reflect.TypeFor[T](), limits{}, nil)}
}

// Decode decodes data, and refuses members that T has not.
func (t Type[T]) Decode(data []byte) (T, error) { return t.decode(data, true) }

// DecodeKnown decodes data, and passes over members that T has not: for answers to which a newer build may
// add some.
func (t Type[T]) DecodeKnown(data []byte) (T, error) { return t.decode(data, false) }

func (t Type[T]) decode(data []byte, strict bool) (v T, err error) {
	var none T
	if len(data) > t.most {
		return none, fmt.Errorf("%w: %d bytes, at most %d", ErrBound, len(data), t.most)
	}
	if !json.Valid(data) || !utf8.Valid(data) {
		return none, fmt.Errorf("%w: not JSON in UTF-8", ErrForm)
	}
	w := walker{in: strictjson.Scan(data), strict: strict}
	if err := w.value(t.shape); err != nil {
		return none, err
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return none, fmt.Errorf("%w: %.200s", ErrForm, err.Error())
	}
	return v, nil
}

// Gunzip returns what was compressed to b. It may have at most so many bytes, and at most 64 for each of b's
// and 64 KiB: what shrinks more than that was made to. Nothing follows it in b, not even another member of gzip's
// that is empty.
func Gunzip(b []byte, most int) ([]byte, error) {
	most = min(most, 64<<10+64*len(b))
	r := bytes.NewReader(b)
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("%w: gzip: %w", ErrForm, err)
	}
	z.Multistream(false)
	all, err := io.ReadAll(io.LimitReader(z, int64(most)+1)) // to the end, where the checksum is
	if err != nil {
		return nil, fmt.Errorf("%w: gzip: %w", ErrForm, err)
	}
	if len(all) > most {
		return nil, fmt.Errorf("%w: %d bytes of gzip are more than %d", ErrBound, len(b), most)
	}
	if r.Len() > 0 {
		return nil, fmt.Errorf("%w: %d bytes follow what is compressed", ErrForm, r.Len())
	}
	return all, nil
}
