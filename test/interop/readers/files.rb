# Reads messages (a line of base64 each) from stdin; prints what the mail gem takes for the name of the last file, as JSON.
require 'base64'
require 'json'
require 'mail'

STDIN.each_line.with_index do |line, number|
  name = Mail.new(Base64.decode64(line)).attachments.last.filename
  puts JSON.generate(message: number, reading: 'Ruby, mail', name: name)
end
