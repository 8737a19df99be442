package port

import (
	"errors"
	"fmt"
	"strings"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/seal"
)

// A call of the leader is answered with one byte, which is replyOK, replyText or the code of an error, and then with
// the result or the error's text.
const (
	replyOK   = 0
	replyText = 0xff // an error of which only the text is kept
)

// maxErrorText is how many bytes of an error's text are sent, and taken from another server's answer. The rest is cut
// off: errors are logged.
const maxErrorText = 4 << 10

// ErrorCode is an error that keeps its identity when another server's answer has it.
type ErrorCode struct {
	Code byte // neither 0 nor 255
	Err  error
	// Bare errors come without the text that they had on the other server.
	Bare bool
}

// ErrorCodes are the errors that keep their identity. Builds differ in them: of an unknown code the text is shown.
type ErrorCodes []ErrorCode

// Errors are those of a leader that has no data of its own. A code is never given to another error; an older build shows the
// text of the errors that it does not know.
var Errors = ErrorCodes{
	{Code: 1, Err: fsm.ErrNotLeader},
	{Code: 2, Err: fsm.ErrNotReady},
	{Code: 3, Err: local.ErrUnknownKey},
	{Code: 4, Err: local.ErrKeyMissing},
	{Code: 5, Err: seal.ErrOpen, Bare: true},
	{Code: 6, Err: seal.ErrTooLong},
	{Code: 7, Err: local.ErrNotDurable},
	{Code: 8, Err: fsm.ErrClosed},
	{Code: 10, Err: local.ErrNotMember},
	{Code: 11, Err: ErrIDInUse},
}

// EncodeReply returns the answer to a call of the leader.
func (c ErrorCodes) EncodeReply(result []byte, err error) []byte {
	if err == nil {
		return append([]byte{replyOK}, result...)
	}
	text := err.Error()
	text = text[:min(len(text), maxErrorText)] // more might not fit into an answer, and the error with it
	for _, e := range c {
		if errors.Is(err, e.Err) {
			return append([]byte{e.Code}, text...)
		}
	}
	return append([]byte{replyText}, text...)
}

// DecodeReply returns what EncodeReply was given.
func (c ErrorCodes) DecodeReply(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errors.New("the leader's answer is empty")
	}
	code, rest := b[0], b[1:]
	if code == replyOK {
		return rest, nil
	}
	rest = rest[:min(len(rest), maxErrorText)]
	for _, e := range c {
		switch {
		case e.Code != code:
		case e.Bare:
			return nil, e.Err
		default:
			return nil, replyError{string(rest), e.Err}
		}
	}
	return nil, fmt.Errorf("from the leader: %s", rest)
}

// replyError is an error of the leader's that keeps its identity. Its text is the leader's, with that of the identity before it if
// it is not in it.
type replyError struct {
	text string
	err  error
}

// Error implements error.
func (e replyError) Error() string {
	if strings.Contains(e.text, e.err.Error()) {
		return "from the leader: " + e.text
	}
	return fmt.Sprintf("from the leader: %v: %s", e.err, e.text)
}

// Unwrap returns the error that it is.
func (e replyError) Unwrap() error { return e.err }
