package probe

import (
	"encoding/binary"
	"time"
)

// AfterSend is what a SenderProgram does when it has sent.
type AfterSend struct {
	Linger time.Duration // before it ends
	Again  bool          // it does not end, but sends again
}

// SenderProgram is the file of a program for linux/amd64 whose first instructions make a socket and send one datagram
// to each port of an address: no program sends earlier after its start.
func SenderProgram(to [4]byte, next AfterSend, ports ...uint16) []byte {
	code := []byte{
		0xbf, 2, 0, 0, 0, // mov edi, AF_INET
		0xbe, 2, 0, 0, 0, // mov esi, SOCK_DGRAM
		0x31, 0xd2, // xor edx, edx
		0xb8, 41, 0, 0, 0, // mov eax, SYS_socket
		0x0f, 0x05, // syscall
		0x89, 0xc3, // mov ebx, eax
	}
	sending := len(code)
	for _, port := range ports {
		code = append(code,
			0x89, 0xdf, // mov edi, ebx
			0x68, 0x7f, 0, 0, 1, // push 127.0.0.1 (the upper half of the push is sign: 0)
			0x48, 0xb8, 2, 0, byte(port>>8), byte(port), to[0], to[1], to[2], to[3], // mov rax, sockaddr_in
			0x50,             // push rax
			0x49, 0x89, 0xe0, // mov r8, rsp
			0x41, 0xb9, 16, 0, 0, 0, // mov r9d, 16
			0x48, 0x89, 0xe6, // mov rsi, rsp
			0xba, 4, 0, 0, 0, // mov edx, 4
			0x45, 0x31, 0xd2, // xor r10d, r10d
			0xb8, 44, 0, 0, 0, // mov eax, SYS_sendto
			0x0f, 0x05, // syscall
			0x85, 0xc0, // test eax, eax: the result is not looked at
		)
	}
	code = append(code, 0x31, 0xff, 0x31, 0xf6, 0xba) // xor edi, edi; xor esi, esi; mov edx, milliseconds
	code = binary.LittleEndian.AppendUint32(code, uint32(next.Linger.Milliseconds()))
	code = append(code, 0xb8, 7, 0, 0, 0, 0x0f, 0x05) // mov eax, SYS_poll; syscall
	if next.Again {
		code = append(code, 0xe9) // jmp, counted from the next instruction
		code = binary.LittleEndian.AppendUint32(code, uint32(sending-len(code)-4))
	}
	code = append(code,
		0x31, 0xff, // xor edi, edi
		0xb8, 60, 0, 0, 0, // mov eax, SYS_exit
		0x0f, 0x05, // syscall
	)
	return elf(code)
}

// elf wraps code for linux/amd64 in the least that can be executed (elf(5)).
func elf(code []byte) []byte {
	const base, header = 0x400000, 64 + 56
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	le := binary.LittleEndian
	b = le.AppendUint16(b, 2)  // ET_EXEC
	b = le.AppendUint16(b, 62) // EM_X86_64
	b = le.AppendUint32(b, 1)  // version
	b = le.AppendUint64(b, base+header)
	b = le.AppendUint64(b, 64) // program headers
	b = le.AppendUint64(b, 0)  // no sections
	b = le.AppendUint32(b, 0)  // flags
	for _, n := range []uint16{64, 56, 1, 64, 0, 0} {
		b = le.AppendUint16(b, n)
	}
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // readable, executable
	for _, n := range []uint64{0, base, base, uint64(header + len(code)), uint64(header + len(code)), 0x1000} {
		b = le.AppendUint64(b, n)
	}
	return append(b, code...)
}
